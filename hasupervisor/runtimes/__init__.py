"""The adapters to what runs instances: Docker containers, or plain processes."""
