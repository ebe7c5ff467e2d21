"""The model server that runs inside an instance: the ChatGLM family behind the original API and OpenAI's."""

__version__ = "0.1.0"
