"""A simulated host around the real loop: virtual time, random faults, and the invariants of the design."""
