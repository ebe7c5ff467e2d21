"""The invariants of the design (DESIGN 3), each a function with its sentence, checked at every cycle and every step."""

from tests.sim.invariants import healing, order, routing, waiting
from tests.sim.invariants.frame import EVERY_CYCLE, EVERY_STEP, Moment

__all__ = ["EVERY_CYCLE", "EVERY_STEP", "Moment", "healing", "order", "routing", "waiting"]
