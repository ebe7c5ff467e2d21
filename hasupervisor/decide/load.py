"""How much one instance has to do now, by the best that is known of it. Pure."""

from __future__ import annotations

from hasupervisor.model import Policy, ProbeView, TrafficView


def in_flight(probe: ProbeView | None, traffic: TrafficView, policy: Policy, now: float) -> float | None:
    """Requests in it, worked on or queued; None: nobody knows.

    Its own count while that is fresh, else the connections that the kernel shows.
    """
    told = own_count(probe, policy, now)
    if told is not None:
        return told
    return float(traffic.in_flight) if traffic.in_flight_known else None


def own_count(probe: ProbeView | None, policy: Policy, now: float) -> float | None:
    """What it said itself in its last answer; None: it does not say, or that is too long ago."""
    fresh = 2.0 * policy.interval + policy.timeout
    if probe is None or probe.progress is None:
        return None
    told_at = probe.answered_at if probe.progress_at is None else probe.progress_at
    if told_at is None or now - told_at > fresh:
        return None
    return float(probe.progress.in_flight + probe.progress.queued)
