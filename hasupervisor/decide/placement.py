"""Where and when an instance may start: on one GPU, or one host without GPUs, one loads at a time.

That protects the one that loads, not at any price: while nobody serves, who has served before does not wait for a
loader that takes far longer than loads have taken (`overdue`), and nobody waits for one that healing does not end
(`endless`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Set

from hasupervisor.decide.health import loads_for, stale_after
from hasupervisor.model import Phase, Policy, Record, Seen, State, StepKind, Verdict, VerdictKind, World

LATE_AT_LEAST = 10.0
"""Seconds that a loader has at least before it counts as overdue: one that loads from a cold disk is slower."""

LIST_LASTS = 60.0
"""Seconds for which the runtime's list is a fact. It is asked for every few seconds, so one that is older was not
renewed, whatever the reason."""

OUT_OF_REACH = 2.0
"""Times that an answer must be older than what is too old for a verdict, before nobody counts on the next one."""

_GOOD = (VerdictKind.SERVING, VerdictKind.BUSY)
_NOBODY: frozenset[str] = frozenset()


def is_proven(seen: Seen) -> bool:
    """Whether this life has shown that it can serve: it is or was in rotation, or has answered a prompt."""
    record, prompted = seen.record, seen.probe is not None and bool(seen.probe.prompt_ok)
    return record.in_rotation or record.serving_since is not None or prompted


def is_loading(seen: Seen, verdict: Verdict, *, unlisted: bool) -> bool:
    """Whether this instance takes up the place that starts need: being started, or alive and not proven yet.

    `unlisted`: the runtime's list is older than the last step; what has just been started is not in it.
    """
    if seen.acting == StepKind.START or (unlisted and was_started(seen)):
        return True
    alive = seen.fact is not None and seen.fact.phase is Phase.RUNNING and seen.record.stuck is None
    return alive and not is_proven(seen) and verdict.kind not in _GOOD


def list_is_old(seen: Seen, world: World) -> bool:
    """Whether the list says nothing of this instance yet: there is none, or the last step ended after it was asked."""
    acted = max([seen.record.acted_at, *(o.at for o in seen.outcomes)])
    return world.runtime.listed_at is None or world.runtime.listed_at <= acted


def stale_list(world: World) -> str | None:
    """Why nothing is decided from the runtime's list: it is old, though nobody says that the runtime is in trouble."""
    listed = world.runtime.listed_at
    if listed is None or world.runtime.trouble is not None or world.now - listed <= LIST_LASTS:
        return None
    return f"waits: the list of instances is {world.now - listed:.0f} s old"


def was_started(seen: Seen) -> bool:
    """Whether the last step on it was a start that went well; the runtime's list may not show it yet."""
    if seen.outcomes:
        return seen.outcomes[-1].step == StepKind.START and seen.outcomes[-1].ok
    return seen.record.state is State.STARTING


def known_load(records: Iterable[Record]) -> float | None:
    """What instances usually took from their start to their first serving, in seconds; None: it was never seen.

    The middle one, of two the shorter: one that an outage kept from serving for minutes says nothing of the others.
    """
    seen = [record.load_s for record in records if record.load_s is not None]
    return statistics.median_low(seen) if seen else None


def overdue(instances: Iterable[Seen], now: float) -> frozenset[str]:
    """Who loads for longer than twice the time that loads have taken here. Who has loaded is not told apart."""
    everybody = tuple(instances)
    load = known_load(seen.record for seen in everybody)
    if load is None:
        return _NOBODY
    limit = max(LATE_AT_LEAST, 2.0 * load)
    return frozenset(s.record.name for s in everybody if (at := _began(s)) is not None and now - at > limit)


def endless(pairs: Iterable[tuple[Seen, Verdict]], policy: Policy, now: float) -> frozenset[str]:
    """Who is past `start_timeout` and is left alone all the same, or cannot be ended: to wait for it has no end.

    That is one that nobody can ask, one that users reach past the gateway, and one that the runtime does not let go.
    """
    return frozenset(seen.record.name for seen, verdict in pairs if _is_endless(seen, verdict, policy, now))


def _is_endless(seen: Seen, verdict: Verdict, policy: Policy, now: float) -> bool:
    if seen.record.stuck is not None:
        return True
    if seen.fact is None or seen.record.leaving is not None:
        return False
    over = loads_for(seen.record, seen.fact, now) > policy.start_timeout
    return over and (verdict.kind is VerdictKind.LOADING or _is_out_of_reach(verdict, policy, now))


def _is_out_of_reach(verdict: Verdict, policy: Policy, now: float) -> bool:
    """Whether nobody could ask it for so long that the next answer, which would end its load, is not just late."""
    since = verdict.since if verdict.kind is VerdictKind.UNKNOWN else None
    return since is not None and now - since > OUT_OF_REACH * stale_after(policy)


def _began(seen: Seen) -> float | None:
    """When its process was started, or was first seen where nobody knows."""
    if seen.fact is None or seen.fact.phase is not Phase.RUNNING:
        return None
    return seen.fact.started_at if seen.fact.started_at is not None else seen.record.met_at


def why_no_start(name: str, loading: Mapping[str, bool], policy: Policy, beside: Set[str] = _NOBODY) -> str | None:
    """Why `name` may not start in this cycle, or None.

    `loading` tells of every instance whether it loads now; those in `beside` are not waited for.
    """
    if not policy.one_at_a_time:
        return None
    others = sorted(other for other, loads in loading.items() if loads and other != name and other not in beside)
    return f"waits until {others[0]} has loaded: one loads at a time" if others else None


def free_port(policy: Policy, taken: frozenset[int]) -> int | None:
    """The first port of the range that nobody has."""
    return next((port for port in policy.ports if port not in taken), None)


def free_name(policy: Policy, taken: frozenset[str]) -> str:
    """The lowest free name: chatglm-01, chatglm-02, ..."""
    number = 1
    while f"{policy.service}-{number:02d}" in taken:
        number += 1
    return f"{policy.service}-{number:02d}"
