"""What bench/failover.py is made of: contenders, faults, loads, and the figures that come of them."""
