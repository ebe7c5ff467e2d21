"""Faults made on purpose: the daemon begins a drill, a process of its own carries it out and writes a sheet of it."""
