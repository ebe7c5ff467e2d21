"""The model families behind one small interface."""
