"""The table of health: from evidence to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.health import judge, stale_after
from hasupervisor.model import Miss, Phase, ProbeView, Progress, Said, Seen, VerdictKind
from tests.decide.facts import (
    NOW,
    POLICY,
    gone,
    hung,
    idle_cpu,
    in_phase,
    instance,
    late,
    loading,
    probed,
    quiet,
    sick,
    silent,
    trafficked,
    working,
)

V = VerdictKind
HANG = POLICY.hang_after

TABLE: dict[str, tuple[Seen, VerdictKind]] = {
    # what the runtime says
    "nobody lists it": (gone(1), V.DEAD),
    "its process has ended": (in_phase(instance(), Phase.EXITED, exit_code=1), V.DEAD),
    "it was created and never started": (in_phase(instance(), Phase.CREATED), V.DEAD),
    "somebody removes it": (in_phase(instance(), Phase.REMOVING), V.DEAD),
    "a person has frozen it": (in_phase(instance(), Phase.PAUSED), V.SUSPECT),
    # it answers
    "answers, idle": (instance(), V.SERVING),
    "answers, work moves": (working(instance(), moved=1.0), V.SERVING),
    "answers; what is in flight cannot be seen": (trafficked(instance(), in_flight_known=False), V.SERVING),
    "has missed one probe of two": (silent(instance(), 1.0, misses=1), V.SERVING),
    "says once that it is unhealthy": (probed(instance(), said=Said.UNHEALTHY, unhealthies=1), V.SUSPECT),
    "says twice that it is unhealthy": (sick(1), V.SICK),
    "fails one prompt": (probed(instance(), prompt_ok=False, prompt_failures=1), V.SUSPECT),
    "fails two prompts": (probed(instance(), prompt_ok=False, prompt_failures=2), V.SICK),
    "gave users errors in a row": (trafficked(instance(), errors_in_row=3, errored_at=NOW), V.SUSPECT),
    "answers, its work stands still for hang_after": (working(instance(), moved=HANG + 1.0), V.HUNG),
    "the same, and what users get cannot be seen": (
        trafficked(working(instance(), moved=HANG + 1.0), in_flight_known=False),
        V.SICK,
    ),
    "the same, and it uses no CPU": (
        idle_cpu(trafficked(working(instance(), moved=HANG + 1.0), in_flight_known=False)),
        V.HUNG,
    ),
    "answers, its work stands still for less": (working(instance(), moved=HANG - 1.0), V.SERVING),
    # it comes up
    "says that it loads": (loading(1, 30.0), V.LOADING),
    "loads for longer than start_timeout": (loading(1, POLICY.start_timeout + 1.0), V.SICK),
    "has not answered its first prompt": (probed(loading(1, 5.0), said=Said.HEALTHY), V.LOADING),
    "is over start_timeout, and works for users that come past the gateway": (
        working(probed(loading(1, POLICY.start_timeout + 1.0), said=Said.HEALTHY), moved=1.0),
        V.LOADING,
    ),
    # it does not answer: one witness
    "silent, nothing in flight": (quiet(1), V.DEAD),
    "silent, has just finished work": (trafficked(quiet(1), completed_at=NOW - 1.0), V.BUSY),
    "silent, answers users": (trafficked(silent(working(instance())), completed_at=NOW - 1.0), V.BUSY),
    "silent, reports progress, uses the CPU": (silent(working(instance())), V.SUSPECT),
    "silent, opaque, work in it": (silent(working(instance(), told=False)), V.SUSPECT),
    "silent, what is in flight cannot be seen": (trafficked(quiet(1), in_flight_known=False), V.SUSPECT),
    "the same, and it uses no CPU, as who is idle does": (
        idle_cpu(trafficked(quiet(1), in_flight_known=False)),
        V.SUSPECT,
    ),
    "refuses connections for a moment": (silent(instance(), 1.0, miss=Miss.REFUSED), V.SUSPECT),
    "refuses connections for longer": (silent(instance(), 6.0, miss=Miss.REFUSED), V.DEAD),
    # its answer is late, and not missed yet: it leaves the rotation only where its work stands still as well
    "is late, its work stands still and it uses no CPU": (idle_cpu(late(working(instance(), moved=3.0))), V.SUSPECT),
    "the same, opaque": (
        trafficked(idle_cpu(late(working(instance(), told=False))), completed_at=NOW - 3.0, mean_ms=300.0),
        V.SUSPECT,
    ),
    "the same, and nobody has seen it move yet": (idle_cpu(late(working(instance(), told=False))), V.SERVING),
    "the same, it uses the CPU": (late(working(instance(), moved=3.0)), V.SERVING),
    "is late, uses no CPU, has just answered a user": (
        trafficked(idle_cpu(late(working(instance(), told=False))), completed_at=NOW - 0.5),
        V.SERVING,
    ),
    "is late, uses no CPU, and its answers take as long as that": (
        trafficked(idle_cpu(late(working(instance(), told=False))), completed_at=NOW - 3.0, mean_ms=4000.0),
        V.SERVING,
    ),
    "is late, uses no CPU, and has nothing to do": (idle_cpu(late(instance())), V.SERVING),
    # it does not answer: two witnesses
    "silent, reports progress, uses no CPU": (hung(1), V.HUNG),
    "the same for less than a second": (idle_cpu(silent(working(instance())), 0.5), V.SUSPECT),
    "silent, reports progress, its CPU is busy, for hang_after": (silent(working(instance()), HANG + 1.0), V.HUNG),
    "silent, opaque, for hang_after": (silent(working(instance(), told=False), HANG + 1.0), V.HUNG),
    "silent, opaque, usually fast, uses no CPU, for 6 s": (
        idle_cpu(trafficked(silent(working(instance(), told=False), 6.0), p99_ms=500.0)),
        V.HUNG,
    ),
    "silent, cannot be seen into, its own last count shows work, no CPU": (
        trafficked(hung(1), in_flight=0, in_flight_known=False),
        V.HUNG,
    ),
    # nobody knows, and it may be busy: SIGTERM and no SIGKILL
    "silent for hang_after, cannot be seen into, its own last count shows work, nobody knows of its CPU": (
        trafficked(silent(working(instance()), HANG + 1.0), in_flight=0, in_flight_known=False),
        V.DEAD,
    ),
    "silent, cannot be seen into, for hang_after": (trafficked(quiet(1, HANG + 1.0), in_flight_known=False), V.DEAD),
    # nobody could ask
    "was not asked yet": (replace(instance(met_at=NOW - 1.0), probe=None), V.UNKNOWN),
    "was not asked for long": (replace(instance(met_at=NOW - 100.0), probe=None), V.UNKNOWN),
    "answered well, and is not asked any more": (
        probed(instance(), answered_at=NOW - 13.0, ended_at=NOW - 13.0),
        V.UNKNOWN,
    ),
    "was silent, and is not asked any more": (probed(quiet(1), ended_at=NOW - 13.0), V.UNKNOWN),
    "said that it is sick, and is not asked any more": (probed(sick(1), answered_at=NOW - 13.0), V.UNKNOWN),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_verdict_on_one_that(case: str) -> None:
    seen, expected = TABLE[case]
    verdict = judge(seen, POLICY, NOW)
    assert (verdict.kind, bool(verdict.sentence)) == (expected, True), verdict.sentence


def test_a_verdict_from_an_old_answer_says_since_when() -> None:
    verdict = judge(probed(instance(), answered_at=NOW - 60.0), POLICY, NOW)
    assert verdict.since == NOW - 60.0
    assert verdict.sentence == "cannot be asked: what is known of it is 60 s old"


def test_why_it_cannot_be_asked_is_said() -> None:
    broken = replace(
        instance(met_at=NOW - 900.0), probe=ProbeView("chatglm-01#1", unasked="EMFILE", unasked_since=NOW - 20.0)
    )
    verdict = judge(broken, POLICY, NOW)
    assert verdict.sentence == "cannot be asked (EMFILE): nothing is known of it for 20 s"


def test_an_answer_is_too_old_after_three_rounds_of_probes() -> None:
    assert stale_after(POLICY) == 3.0 * (POLICY.interval + POLICY.timeout)
    fresh = probed(instance(), answered_at=NOW - stale_after(POLICY))
    assert judge(fresh, POLICY, NOW).kind is V.SERVING


def test_a_report_of_nothing_to_do_is_no_work_that_stands_still() -> None:
    idle = probed(instance(), progress=Progress(), progressed_at=NOW - 1000.0)
    assert judge(idle, POLICY, NOW).kind is V.SERVING
