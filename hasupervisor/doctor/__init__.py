"""Looks at a host from outside the daemon, which need not run, and says of each thing whether it is as it has to be."""
