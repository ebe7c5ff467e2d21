"""The autoscaler around the real loop: when it acts, when it does not, and what it says; in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.model import Note, OperationState, Pause, State
from tests.autoscale.hosting import RULES, Host


@pytest.fixture
def host() -> Host:
    """Two instances that serve and have nothing to do."""
    return settled(Host())


def settled(host: Host, **changes: object) -> Host:
    host.begin(replace(RULES, **changes))  # type: ignore[arg-type]
    host.run(20)
    assert serving(host) == 2
    return host


def serving(host: Host) -> int:
    assert host.loop.latest is not None
    return sum(1 for judged in host.loop.latest.instances if judged.state is State.SERVING)


def test_a_sample_is_taken_every_period_and_kept(host: Host) -> None:
    host.in_flight = 8.0
    host.requests.ended, host.requests.answered, host.requests.latency_s = 30, 20, 10.0
    host.run(10)
    sample = host.samples[-1]
    assert (sample.serving, sample.desired, sample.starting) == (2, 2, 0)
    assert (sample.connections, sample.in_flight, sample.qps, sample.response_time_ms) == (4.0, 8.0, 3.0, 500.0)
    assert (sample.cpu_percent, sample.memory_percent, sample.gpu_utilization) == (12.0, 34.0, None)
    began = len(host.samples)
    host.run(100)
    assert len(host.samples) == began + 10


def test_it_scales_up_to_what_is_needed_and_back(host: Host) -> None:
    host.in_flight = 18.0
    host.run(400)
    assert (host.desired, serving(host)) == (4, 4)  # 18 over 3 is above 5, over 4 it is not
    host.in_flight = 0.0
    host.run(900)
    assert (host.desired, serving(host)) == (2, 2)
    assert host.steps()[0].startswith("2 -> 3: ")
    assert host.steps()[0].endswith("connections an instance over 60 s, above 5")
    assert [direction for direction, _ in host.decided if direction != "held"] == ["up", "up", "down", "down"]


def test_what_a_step_taught_is_kept_and_holds_the_count_of_the_next_daemon(host: Host) -> None:
    host.in_flight, host.qps = 18.0, 30.0
    host.run(400)
    assert [lesson.serving for lesson in host.lessons] == [2, 3]
    after = Host(now=host.now, qps=25.0)
    after.begin(desired=4)
    after.autoscaler.judge.remember(host.samples, host.now, host.lessons)
    after.run(900)
    assert after.desired == 4
    held = after.autoscaler.opinions(after.now)["thresholds"].held_back_by
    assert held is not None
    assert held.startswith("3 were too few for ")


def test_each_step_is_an_operation_of_the_autoscalers(host: Host) -> None:
    host.in_flight = 12.0
    host.run(200)
    (operation,) = host.loop.operations
    assert (operation.by, operation.total, operation.state) == ("autoscaler", 3, OperationState.DONE)
    assert {note.by for note in host.notes if note.subject == "autoscale"} == {"autoscaler"}


@pytest.mark.parametrize("policy", ["thresholds", "concurrency"])
def test_no_second_one_starts_while_one_is_loading(policy: str) -> None:
    host = settled(Host(), policy=policy, slots=4)
    host.load_s, host.in_flight, host.starting_at_once = 200.0, 60.0, 0
    host.run(150)
    assert host.starting_at_once == 1
    before = host.desired
    host.run(60)
    assert host.desired == before
    assert host.starting_at_once == 1


def test_the_sentence_says_that_one_is_on_its_way(host: Host) -> None:
    host.load_s, host.in_flight = 200.0, 60.0
    host.run(120)
    assert host.autoscaler.view().sentence.startswith("holding 3: waits for op-1: 2 of 3 serving; chatglm-03")


@pytest.mark.parametrize("mode", ["manual", "paused", "off"])
def test_it_acts_in_mode_auto_alone_and_goes_on_sampling(mode: str) -> None:
    host = settled(Host(), enabled=mode != "off")
    wants = host.loop.wants
    host.loop.wants = {
        "manual": replace(wants, mode="manual"),
        "paused": replace(wants, pause=Pause("alice (uid 1000)", host.wall())),
        "off": wants,
    }[mode]
    host.in_flight = 60.0
    host.run(300)
    assert (host.desired, host.steps()) == (2, [])
    assert host.samples[-1].connections == 30.0
    words = {"manual": "mode manual", "paused": "paused by alice (uid 1000)", "off": "autoscale.enabled = false"}
    assert words[mode] in host.autoscaler.view().sentence
    assert host.autoscaler.view().opinions["thresholds"].desired == 3


def test_a_pause_holds_a_step_that_has_begun_and_it_goes_on_after_it(host: Host) -> None:
    host.broken, host.in_flight = True, 12.0  # the start of the third fails, so that it waits for its next try
    host.run(130)
    assert host.desired == 3
    host.broken = False
    host.loop.wants = replace(host.loop.wants, pause=Pause("alice (uid 1000)", host.wall()))
    there = len(host.lives)
    host.run(600)
    assert len(host.lives) == there == 2
    host.loop.wants = replace(host.loop.wants, pause=None)
    host.run(60)
    assert serving(host) == 3


def test_without_a_free_port_it_says_so_and_stays(host: Host) -> None:
    host.foreign_ports = frozenset(range(8002, 8010))
    host.in_flight = 60.0
    host.run(200)
    assert host.desired == 2
    assert host.autoscaler.view().opinions["thresholds"].held_back_by == "no free port is left in service.ports"
    assert ("held", "held back") in host.decided


def test_the_use_of_the_gpus_is_sampled_and_asks_for_more() -> None:
    host = settled(Host(cards=2, utilization=0.6))
    host.run(20)
    sample = host.samples[-1]
    assert sample.gpu_utilization == pytest.approx(60.0)
    assert (sample.gpu_memory_used_gb, sample.gpu_memory_total_gb) == (26.0, 80.0)
    host.utilization = 0.9
    host.run(120)
    assert host.steps() == ["2 -> 3: 90 % GPU use over 60 s, above 85"]


def test_a_card_that_falls_silent_leaves_its_use_unknown_and_nothing_goes() -> None:
    host = Host(cards=3, utilization=0.1)
    host.begin(RULES, desired=3)
    host.run(60)
    host.mute = frozenset({0})
    host.run(100)
    assert host.samples[-1].gpu_utilization is None
    assert host.desired == 3
    assert "GPU use is not known in all samples" in host.autoscaler.view().sentence


def test_without_memory_on_any_gpu_it_says_so_and_stays() -> None:
    host = settled(Host(cards=1, in_flight=30.0))
    host.run(300)
    assert (host.desired, serving(host)) == (3, 3)  # 40 GB hold three of 13
    held = host.autoscaler.opinions(host.now)["thresholds"].held_back_by
    assert held == "no GPU has 13.0 GB for it: GPU 0: 1.0 GB for newcomers"
    assert ("held", "held back") in host.decided


def test_the_one_on_a_quarantined_card_goes_first_though_it_is_the_oldest() -> None:
    host = Host(cards=3)
    host.begin(RULES, mode="manual", desired=3)
    host.run(60)
    first = host.lives["chatglm-01"].fact.gpus[0]
    host.loop.cards.quarantine(first, "its fan is loud", "alice", 1_700_000_000.0)
    host.loop.want(replace(host.loop.wants, desired=2), Note("scale", "scale", "3 -> 2", "alice"))
    host.run(60)
    assert first not in {uuid for life in host.lives.values() for uuid in life.fact.gpus}
    assert sorted(host.lives) == ["chatglm-02", "chatglm-03"]


def test_one_that_is_given_up_is_no_capacity(host: Host) -> None:
    host.broken, host.in_flight = True, 12.0
    host.run(600)
    assert host.loop.latest is not None
    parked = [j.record.name for j in host.loop.latest.instances if j.state is State.PARKED]
    assert parked
    assert host.autoscaler.situation().parked == tuple(parked)
    assert host.autoscaler.situation().serving == 2


def test_what_nobody_can_tell_is_missing_and_scales_nothing(host: Host) -> None:
    host.in_flight = 12.0
    host.run(200)
    assert host.desired == 3
    host.known, host.in_flight = False, 0.0
    host.run(600)
    assert host.desired == 3
    assert host.samples[-1].connections is None
    host.known = True
    host.run(300)
    assert host.desired == 2


def test_while_the_runtime_is_in_trouble_nothing_is_scaled(host: Host) -> None:
    host.trouble, host.in_flight = "cannot reach dockerd: no answer in 5 s", 60.0
    host.run(200)
    assert host.desired == 2
    assert host.autoscaler.view().sentence == "holding 2: waits: cannot reach dockerd: no answer in 5 s"


def test_a_burst_is_answered_within_ten_seconds_by_policy_concurrency() -> None:
    host = settled(Host(), policy="concurrency", slots=4, evaluate=3000.0)
    host.in_flight = 4.0
    host.run(60)
    host.in_flight = 24.0
    host.run(10)
    assert host.desired > 2
    assert "a burst" in host.steps()[0]


def test_slots_are_learned_from_an_instance_that_lets_requests_queue(host: Host) -> None:
    assert host.autoscaler.judge.slots().how == "assumed"
    host.in_flight, host.queued = 8.0, 3
    host.run(5)
    assert (host.autoscaler.judge.slots().count, host.autoscaler.judge.slots().how) == (4, "told by the instances")


def test_the_time_that_a_start_takes_is_learned() -> None:
    host = Host(load_s=42.0)
    host.begin()
    host.run(100)
    assert 42.0 <= host.autoscaler.load_seconds <= 45.0
