"""The autoscaler on a host with graphics cards: by their use it wants more, and their memory says where that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.daemon import Document, Settings, as_processes
from tests.real.gpu_host import GIB, GpuHost, gpu_host

QUICK: Settings = {
    "service": {"instances": 2, "min": 2, "max": 6},
    "gpu": {"memory_gb": 13.0},
    "autoscale": {"enabled": True, "sample": 1.0, "evaluate": 1.0, "up_samples": 3, "down_samples": 4},
}


@pytest.fixture
def host(
    standin_server: Path, port_range: Callable[[int], range], tmp_path: Path, nvml_library: Path
) -> Iterator[GpuHost]:
    """Three cards of 24 GB: each has room for one instance."""
    with gpu_host(port_range(20), tmp_path, nvml_library, as_processes(standin_server), QUICK, cards=3) as made:
        made.start()
        made.daemon.wait_until_green(2)
        yield made


def work(host: GpuHost, percent: int) -> None:
    for card in host.nvml.cards:
        card.numbers["utilization"] = percent
    host.wait_until_seen()


def test_busy_cards_get_one_more_and_without_room_it_says_so(host: GpuHost) -> None:
    work(host, percent=91)
    host.daemon.wait_for(lambda status: status["serving"] == 3, "one more serves")
    steps = [e["sentence"] for e in host.daemon.history() if e["subject"] == "autoscale" and e["event"] == "scale"]
    assert steps == ["2 -> 3: 91 % GPU use over 3 s, above 85"]
    host.occupy(bytes_=13 * GIB)

    def held(status: Document) -> str | None:
        sentence: str = status["autoscale"]["sentence"]
        return sentence if "would be wanted" in sentence else None

    sentence = host.daemon.wait_for(held, "one more would be wanted")
    assert sentence.startswith("holding 3: 4 would be wanted, 91 % GPU use over 3 s, above 85; but no GPU has 13.0 GB")
    latest = host.daemon.hactl("autoscale", "status", "--json").document["latest"]
    assert (latest["serving"], latest["gpu_utilization"]) == (3, 91.0)
    assert latest["gpu_memory_used_gb"] == pytest.approx(3 * 13, abs=0.1)
    assert latest["gpu_memory_total_gb"] == pytest.approx(3 * 22.5, abs=0.1)
