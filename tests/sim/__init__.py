"""A whole host in virtual time around the real loop and the real decisions, with faults and a truth of its own.

- engine: the clock. lives, dockerd, nginx, room, cards, users: what there is on the host, and the truth about it.
- senses, desk: what the daemon sees of that and does to it; what people ask of it. host: all together.
- faults: what goes wrong and ends by itself. forever, endless: what does not; a person mends it. commands: of people.
- schedule: episodes of all that by seed. ledger: what the checks remember. invariants/: what has to hold.
- run, __main__: `python -m tests.sim`. mutants: deliberate defects of the decisions that have to be found.
"""
