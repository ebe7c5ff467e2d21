"""Keeps a host's ChatGLM instances serving, and keeps its users from noticing when one does not."""

__version__ = "0.1.0"
