"""The nouns of the house: frozen facts and decisions that every layer shares, and nothing that acts.

Unless a name says `_wall`, every time is `time.monotonic()` in seconds and every interval is seconds.
"""

from hasupervisor.model.facts import (
    Address,
    Fact,
    GatewayView,
    Miss,
    Outcome,
    ProbeView,
    Progress,
    RuntimeView,
    Said,
    TrafficView,
)
from hasupervisor.model.plan import (
    GpuPolicy,
    Judged,
    Note,
    Plan,
    Policy,
    Problem,
    Route,
    Routing,
    Seen,
    Step,
    StepKind,
    Verdict,
    World,
)
from hasupervisor.model.record import (
    Cause,
    Failure,
    Leaving,
    Poisoned,
    Record,
)
from hasupervisor.model.states import (
    Colour,
    Phase,
    State,
    VerdictKind,
)
from hasupervisor.model.wants import (
    AUTOSCALER,
    Operation,
    OperationKind,
    OperationState,
    Pause,
    Wants,
)

__all__ = [
    "AUTOSCALER",
    "Address",
    "Cause",
    "Colour",
    "Fact",
    "Failure",
    "GatewayView",
    "GpuPolicy",
    "Judged",
    "Leaving",
    "Miss",
    "Note",
    "Operation",
    "OperationKind",
    "OperationState",
    "Outcome",
    "Pause",
    "Phase",
    "Plan",
    "Poisoned",
    "Policy",
    "ProbeView",
    "Problem",
    "Progress",
    "Record",
    "Route",
    "Routing",
    "RuntimeView",
    "Said",
    "Seen",
    "State",
    "Step",
    "StepKind",
    "TrafficView",
    "Verdict",
    "VerdictKind",
    "Wants",
    "World",
]
