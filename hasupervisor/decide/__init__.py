"""Pure functions from what is seen to what is to be done: no I/O, no clock, no randomness of their own."""
