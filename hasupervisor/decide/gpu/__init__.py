"""GPUs: what is seen of them, and which fault asks for what."""
