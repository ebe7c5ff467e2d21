"""The sliding minute against a list that forgets nothing."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasupervisor.observe.window import BINS, RATIO, SPAN, Summary, Window


def test_nothing_has_no_latency() -> None:
    assert Window(100.0).summary(100.0) == Summary()


def test_a_young_window_is_not_watered_down() -> None:
    window = Window(100.0)
    for _ in range(20):
        window.add(101.0, 0.1, False)
    assert window.summary(110.0).qps == pytest.approx(2.0)
    assert window.summary(159.9).qps == pytest.approx(20 / 59.9)


def test_a_minute_later_nothing_is_left() -> None:
    window = Window(100.0)
    for at in range(100, 160):
        window.add(at + 0.5, 0.123456, True)
    assert window.summary(160.0).qps == pytest.approx(59 / 60)
    assert window.summary(219.9) == Summary()
    assert window.summary(500.0) == Summary()
    window.add(10_000.0, 1.0, False)
    assert window.summary(10_000.0).mean_ms == pytest.approx(1000.0)


def test_requests_without_a_latency_count_as_requests_only() -> None:
    window = Window(0.0)
    window.add(1.0, None, True)
    window.add(1.0, 0.5, False)
    summary = window.summary(10.0)
    assert (summary.error_rate, summary.mean_ms) == (0.5, pytest.approx(500.0))


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.001, 0.9, 8.0, 599.0, 600.0, 86_400.0, -0.001])
def test_a_latency_of_any_length_has_its_bin(seconds: float) -> None:
    window = Window(0.0)
    window.add(1.0, seconds, False)
    p50 = window.summary(2.0).p50_ms
    assert p50 is not None
    if 0.001 <= seconds <= 600.0:
        assert seconds * 1000 / RATIO <= p50 <= seconds * 1000 * RATIO


REQUESTS = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),  # seconds after the one before
        st.none() | st.floats(0.0, 700.0),  # latency
        st.booleans(),  # error
    ),
    max_size=80,
)


@settings(deadline=None)  # a busy machine is no defect
@given(REQUESTS, st.floats(0.0, 130.0))
def test_the_window_agrees_with_a_list_of_all_requests(
    requests: list[tuple[float, float | None, bool]], pause: float
) -> None:
    window = Window(1000.0)
    seen: list[tuple[float, float | None, bool]] = []
    now = 1000.0
    for wait, latency, error in requests:
        now += wait
        window.add(now, latency, error)
        seen.append((now, latency, error))
    now += pause
    inside = [request for request in seen if int(now) - int(request[0]) < SPAN]
    timed = sorted(latency * 1000 for _, latency, _ in inside if latency is not None)
    summary = window.summary(now)
    assert summary.qps == pytest.approx(len(inside) / min(SPAN, max(1.0, now - 1000.0)))
    assert summary.error_rate == pytest.approx(sum(error for *_, error in inside) / len(inside) if inside else 0.0)
    if not timed:
        assert (summary.mean_ms, summary.p50_ms, summary.p95_ms) == (None, None, None)
        return
    assert summary.mean_ms == pytest.approx(statistics.fmean(timed), abs=1e-6)
    for share, found in ((0.50, summary.p50_ms), (0.95, summary.p95_ms)):
        exact = timed[max(0, math.ceil(share * len(timed)) - 1)]
        assert found is not None
        assert found <= max(1.0, exact * RATIO) + 1e-9
        assert found >= min(exact / RATIO, RATIO ** (BINS - 2)) - 1.0


def test_memory_does_not_grow_with_traffic() -> None:
    window = Window(0.0)
    for i in range(30_000):
        window.add(i / 200.0, (i % 997) / 100.0, False)
    assert len(window._buckets) == SPAN
    assert len(window._bins) <= BINS
    assert all(len(bucket.bins) <= BINS for bucket in window._buckets)
    assert window.summary(150.0).qps == pytest.approx(200.0, rel=0.05)
    assert window.summary(150.0 + SPAN) == Summary()
    assert not window._bins, "what has passed leaves nothing behind"
