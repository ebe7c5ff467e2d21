"""When a drill is over, what its table says, and what counts as a promise that was not kept; refusals beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hasupervisor import assembly
from hasupervisor.drill import judgement, safety
from hasupervisor.drill.judgement import Evidence
from hasupervisor.drill.load import NOT_CONNECTED
from hasupervisor.drill.order import Fault, Order
from hasupervisor.drill.safety import Around
from hasupervisor.drill.sheet import Sheet, Tally, Until
from hasupervisor.drill.witness import Document, Picture
from hasupervisor.model import Address, GatewayView, Pause, State, TrafficView
from hasupervisor.report.document import timestamp
from hasupervisor.runtimes.process_records import Identity
from tests.report.example import NOW, OPERATION, SERVING, SNAPSHOT, judged

AT = 1_795_489_331.0  # when the fault was made
OLD = Identity(4711, 7, "boot")
ORDER = Order(
    id="drill-3",
    fault=Fault.KILL,
    name="chatglm-02",
    by="alice (uid 1000)",
    rate=10.0,
    spike_rate=30.0,
    seconds=60.0,
    patience=100.0,
    limit=90.0,
    prompt="你好",
    dialect="auto",
    gateway="http://127.0.0.1:8080",
    host="chatglm-ha.internal",
    socket="/run/control.sock",
    path="/var/lib/chatglm-ha/drills/drill-3.json",
    target=OLD,
)


def instance(name: str, **changes: Any) -> Document:
    whole = {"name": name, "state": "serving", "routed": True, "pid": 4712, "since": timestamp(AT - 60)}
    return {**whole, "last_failure": None, **changes}


def picture(*instances: Document, after: float, **changes: Any) -> Picture:
    """What the daemon says so many seconds after the fault, with two instances that serve."""
    shown = list(instances) or [instance("chatglm-01"), instance("chatglm-02")]
    status = {
        "now": timestamp(AT + after),
        "settled": True,
        "desired": 2,
        "serving": sum(one["state"] == "serving" for one in shown),
        "nginx": {"ok": True, "live_generation": 4},
        "instances": shown,
        **changes,
    }
    return Picture(AT + after, status)


def entry(after: float, event: str, sentence: str, subject: str = "chatglm-02") -> Document:
    return {"at": timestamp(AT + after), "event": event, "sentence": sentence, "subject": subject}


def evidence(seen: Picture | None, *history: Document, undone: float | None = None, daemon: int = 1) -> Evidence:
    return Evidence(AT, AT + undone if undone is not None else None, seen, history, daemon)


OUT = entry(0.25, "routing", "out of the gateway: generation 4")


def test_the_times_are_those_of_the_daemons_history_and_status() -> None:
    back = instance("chatglm-02", since=timestamp(AT + 1.5), last_failure={"at": timestamp(AT + 0.1), "reason": "x"})
    seen = evidence(picture(instance("chatglm-01"), back, after=1.7), OUT)
    killed = judgement.until(ORDER, seen)
    assert killed.fenced is None  # the drill ended it, not the daemon
    assert killed.out_of_rotation == pytest.approx(0.25, abs=0.002)
    assert killed.serving_again == pytest.approx(1.5, abs=0.002)
    hung = judgement.until(replace(ORDER, fault=Fault.HANG), seen)
    assert hung.fenced == pytest.approx(0.1, abs=0.002)


def test_what_was_before_the_fault_or_is_of_others_does_not_count() -> None:
    old = instance("chatglm-02", last_failure={"at": timestamp(AT - 5), "reason": "x"})
    other = entry(0.2, "routing", "out of the gateway: generation 4", "chatglm-01")
    before = entry(-2.0, "routing", "out of the gateway: generation 3")
    joins = entry(0.3, "routing", "in the gateway: generation 5")
    seen = evidence(picture(instance("chatglm-01"), old, after=2.0), before, other, joins, undone=1.0)
    assert judgement.until(replace(ORDER, fault=Fault.HANG), seen) == Until()


def test_a_kill_is_over_when_another_process_serves() -> None:
    as_before = picture(instance("chatglm-01"), instance("chatglm-02", pid=OLD.pid), after=0.1)
    assert not judgement.is_over(ORDER, evidence(as_before))  # the daemon has not noticed yet
    assert not judgement.is_over(ORDER, evidence(None))
    assert not judgement.is_over(ORDER, evidence(picture(after=-0.1)))
    assert not judgement.is_over(ORDER, evidence(picture(instance("chatglm-01"), after=1.0)))
    loads = instance("chatglm-02", state="loading", routed=False)
    assert not judgement.is_over(ORDER, evidence(picture(instance("chatglm-01"), loads, after=1.0)))
    assert judgement.is_over(ORDER, evidence(picture(after=1.0)))


def test_a_hang_is_over_when_it_was_undone_and_all_serve() -> None:
    order = replace(ORDER, fault=Fault.HANG)
    same = picture(instance("chatglm-01"), instance("chatglm-02", pid=OLD.pid), after=3.0)
    assert not judgement.is_over(order, evidence(same))
    assert not judgement.is_over(order, evidence(same, undone=3.5))
    assert judgement.is_over(order, evidence(same, undone=2.5))


def test_the_daemon_is_back_when_another_one_has_asked_around() -> None:
    order = replace(ORDER, fault=Fault.DAEMON, name=None)
    assert not judgement.is_over(order, evidence(picture(after=1.0), daemon=OLD.pid))
    assert not judgement.is_over(order, evidence(picture(after=1.0, settled=False), daemon=5000))
    back = evidence(picture(after=1.0), daemon=5000)
    assert judgement.until(order, back).serving_again == pytest.approx(1.0, abs=0.002)


def test_the_gateway_is_back_when_the_daemon_has_written_that_down() -> None:
    order = replace(ORDER, fault=Fault.GATEWAY, name=None)
    gone = entry(0.02, "gateway", "nginx has gone", "nginx")
    again = entry(0.08, "gateway", "nginx answers again: generation 4", "nginx")
    assert not judgement.is_over(order, evidence(picture(after=0.1), gone))
    dead = picture(after=0.1, nginx={"ok": False, "live_generation": None})
    assert not judgement.is_over(order, evidence(dead, gone, again))
    back = judgement.until(order, evidence(picture(after=0.2), gone, again))
    assert back.serving_again == pytest.approx(0.08, abs=0.002)


WELL = Until(0.2, None, 1.5)


@pytest.mark.parametrize(
    ("fault", "tally", "seen", "over", "findings"),
    [
        (Fault.KILL, Tally(50, 50), WELL, True, ()),
        (Fault.KILL, Tally(50, 48, 0, (("cut", 2),)), WELL, True, ("2 of 50 requests failed",)),
        (Fault.KILL, Tally(50, 50), Until(), False, ("does not serve again", "never taken out of rotation")),
        (Fault.HANG, Tally(50, 50), Until(2.0, 5.0, 8.0), True, ()),
        (Fault.SICK, Tally(50, 50), Until(None, None, None), True, ("never taken out of rotation",)),
        (Fault.SLOW, Tally(50, 50), Until(), True, ()),
        (Fault.SLOW, Tally(50, 50), Until(1.0, 2.0, 3.0), True, ("was restarted, and should not have been",)),
        (Fault.SPIKE, Tally(50, 40, 10), Until(), True, ()),
        (Fault.SPIKE, Tally(50, 50), Until(1.0, None, 2.0), True, ("left rotation, and should not have",)),
        (Fault.DAEMON, Tally(50, 50), Until(None, None, 2.0), True, ()),
        (Fault.DAEMON, Tally(50, 50), Until(0.1, None, 2.0), True, ("left rotation, and should not have",)),
        (Fault.GATEWAY, Tally(50, 49, 0, ((NOT_CONNECTED, 1),)), Until(None, None, 0.1), True, ()),
        (Fault.GATEWAY, Tally(50, 49, 0, (("cut", 1),)), Until(None, None, 0.1), True, ("1 of 50 requests failed",)),
        (Fault.KILL, Tally(50, 49, 0, ((NOT_CONNECTED, 1),)), WELL, True, ("1 of 50 requests failed",)),
    ],
)
def test_what_counts_as_a_promise_that_was_not_kept(
    fault: Fault, tally: Tally, seen: Until, over: bool, findings: tuple[str, ...]
) -> None:
    found = judgement.broken_promises(replace(ORDER, fault=fault), tally, seen, over=over)
    assert len(found) == len(findings)
    assert all(words in sentence for words, sentence in zip(findings, found, strict=True))


def test_the_table_in_words_leaves_out_what_was_not() -> None:
    words = judgement.sentence(ORDER, Tally(33, 30, 2, (("cut", 1),), 0.104), Until(0.22, None, 0.941))
    assert words == (
        "33 sent, 1 failed, 2 told to come again, slowest 0.10 s, out of rotation after 0.22 s, "
        "serving again after 0.94 s"
    )


def test_orders_and_sheets_survive_their_files() -> None:
    order = replace(ORDER, address=Address("127.0.0.1", 8000))
    assert Order.from_json(order.to_json()) == order
    assert Order.from_json(replace(order, target=None, address=None).to_json()).target is None
    for text in ("[]", "{}", '{"target": null, "address": null, "fault": "kill"}'):
        with pytest.raises(ValueError, match="order"):
            Order.from_json(text)
    with pytest.raises(ValueError, match="sheet"):
        Sheet.from_json("{}")


# --- refusals ---------------------------------------------------------------------------------------------------------

WHOLE = replace(
    SNAPSHOT,
    problems=(),
    operations=(),
    instances=(SERVING, judged("chatglm-02", State.SERVING, fact=SERVING.fact)),
    traffic=TrafficView(),
)
QUIET = Around("own", supervised=True, users_qps=0.0)


@pytest.mark.parametrize("fault", list(Fault))
def test_nothing_speaks_against_a_drill_on_a_host_where_all_serves(fault: Fault) -> None:
    assert safety.objections(fault, WHOLE.instances[1], WHOLE, QUIET) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settled": False}, "the daemon has just started"),
        ({"wants": replace(WHOLE.wants, pause=Pause("bob", 1.0))}, "healing is paused by bob"),
        ({"operations": (OPERATION,)}, "op-7 is at work: scale by alice (uid 1000)"),
        ({"gateway": GatewayView(ok=False, reason="unknown directive")}, "nginx: unknown directive"),
        ({"gateway": replace(WHOLE.gateway, live_generation=40)}, "nginx is just being reloaded"),
        ({"instances": (SERVING,)}, "1 of 3 serve; at least 2 have to"),
        ({"instances": (*WHOLE.instances, judged("chatglm-03", State.LOADING))}, "chatglm-03 is loading: is loading"),
        ({"problems": SNAPSHOT.problems}, "chatglm-02: backing off: exited 1"),
        ({"runtime": replace(WHOLE.runtime, trouble="no answer in 5 s")}, "dockerd: no answer in 5 s"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_whatever_is_not_whole_speaks_against_every_drill(changes: dict[str, Any], words: str) -> None:
    if "problems" in changes:  # of an instance that is shown as serving: it is said once, by the instance itself
        changes = {**changes, "problems": tuple(replace(p, subject="memory") for p in changes["problems"])}
        words = words.replace("chatglm-02", "memory")
    for fault in Fault:
        found = safety.objections(fault, SERVING, replace(WHOLE, **changes), QUIET)
        assert any(objection.startswith(words) for objection in found), found


@pytest.mark.parametrize(
    ("fault", "around", "words"),
    [
        (Fault.DAEMON, replace(QUIET, supervised=False), "nobody is seen who would start the daemon again"),
        (Fault.GATEWAY, replace(QUIET, nginx_mode="system"), "nginx is the system's"),
        (Fault.SPIKE, replace(QUIET, users_qps=4.2), "users send 4.2 requests a second"),
    ],
)
def test_each_fault_of_the_host_has_a_reason_of_its_own(fault: Fault, around: Around, words: str) -> None:
    (found,) = safety.objections(fault, None, WHOLE, around)
    assert found.startswith(words)
    assert safety.objections(Fault.KILL, WHOLE.instances[1], WHOLE, around) == ()


def test_an_instance_that_would_be_parked_is_spared() -> None:
    record = replace(SERVING.record, failures=(NOW - 9, NOW - 8, NOW - 7, NOW - 6))
    (found,) = safety.objections(Fault.KILL, replace(SERVING, record=record), WHOLE, QUIET)
    assert found == "chatglm-01 has failed 4 times lately: once more, and it is parked"


def test_the_one_with_the_least_in_flight_is_chosen_and_of_equals_the_last() -> None:
    idle = judged("chatglm-02", State.SERVING)
    chosen = safety.choose(replace(WHOLE, instances=(SERVING, idle, judged("chatglm-03", State.LOADING))))
    assert chosen is idle
    assert safety.choose(replace(WHOLE, instances=(idle, replace(idle, record=SERVING.record)))) is not idle
    assert safety.choose(replace(WHOLE, instances=())) is None


@pytest.mark.parametrize(
    ("environment", "parent", "expected"),
    [
        ({}, 1, False),
        ({"NOTIFY_SOCKET": "/run/systemd/notify"}, 1, True),
        ({"INVOCATION_ID": "8f"}, 1, True),
        ({"INVOCATION_ID": "8f"}, 4000, False),  # a shell of a desktop session has inherited it
        ({"INVOCATION_ID": "8f", "SYSTEMD_EXEC_PID": "99"}, 1, False),
        ({"INVOCATION_ID": "8f", "SYSTEMD_EXEC_PID": "77"}, 4000, True),
    ],
)
def test_somebody_is_seen_who_would_start_the_daemon_again(
    environment: dict[str, str], parent: int, expected: bool
) -> None:
    assert assembly.is_supervised(environment, 77, parent) is expected
