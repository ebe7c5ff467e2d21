"""GPUs: which fault asks for what, and what becomes of a card."""
