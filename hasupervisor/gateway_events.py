"""What the history tells of the gateway: who gets requests and who does not any more, and that nginx went and came."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hasupervisor.model import Address, Fact, GatewayView, Note


class GatewayEvents:
    """Compares each view of the gateway with the one before, and writes down what is proven, not what is wanted."""

    def __init__(self, note: Callable[[Note], None]) -> None:
        self._note = note
        self._routed: dict[Address, str] = {}  # who gets requests, as far as the history tells
        self._is_nginx_missed = False

    def begin(self, view: GatewayView) -> None:
        """Who was routed by an earlier daemon: no news, and known by name only once the instances are listed."""
        self._routed = dict.fromkeys(_proven(view), "")

    def met(self, facts: Iterable[Fact]) -> None:
        """The instances are listed: their names are known from here on."""
        for fact in facts:
            if self._routed.get(fact.address) == "":
                self._routed[fact.address] = fact.name

    def tell(self, before: GatewayView, now: GatewayView, facts: Iterable[Fact]) -> None:
        """The view has changed."""
        self._tell_master(before, now)
        self._tell_routing(now, {fact.address: fact.name for fact in facts})

    def _tell_master(self, before: GatewayView, now: GatewayView) -> None:
        """That nginx has gone, and that it is proven to answer again: often both are known at once."""
        if now.lost_masters > before.lost_masters and now.live_generation is None:
            self._note(Note("nginx", "gateway", "nginx has gone"))
            self._is_nginx_missed = True
        elif now.lost_masters > before.lost_masters:
            self._note(Note("nginx", "gateway", f"nginx had gone and answers again: generation {now.live_generation}"))
        elif self._is_nginx_missed and now.live_generation is not None:
            self._note(Note("nginx", "gateway", f"nginx answers again: generation {now.live_generation}"))
            self._is_nginx_missed = False

    def _tell_routing(self, view: GatewayView, names: dict[Address, str]) -> None:
        what = f"generation {view.live_generation}" if view.live_generation is not None else "nginx does not run"
        for address in sorted(self._routed.keys() - view.live):
            name = self._routed.pop(address) or str(address)
            self._note(Note(name, "routing", f"out of the gateway: {what}"))
        for address in sorted(_proven(view)):
            name = names.get(address) or self._routed.get(address) or str(address)
            if address not in self._routed:
                self._note(Note(name, "routing", f"in the gateway: {what}"))
            self._routed[address] = name


def _proven(view: GatewayView) -> frozenset[Address]:
    return view.live - view.joining
