"""The folder of sheets: names, order, what is no sheet, how many are kept, and a disk that cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hasupervisor.drill import shelf as module
from hasupervisor.drill.sheet import DONE, Sheet
from hasupervisor.drill.shelf import Shelf, number_of
from hasupervisor.report.desk import Unavailable
from hasupervisor.runtimes.process_records import Identity


def sheet(number: int) -> Sheet:
    return Sheet(
        id=f"drill-{number}",
        fault="kill",
        name="chatglm-02",
        by="alice (uid 1000)",
        rate=10.0,
        seconds=60.0,
        patience=100.0,
        process=Identity(1, 1, "boot"),
        started=float(number),
        state=DONE,
    )


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "drills")
    yield made
    made.close()


async def test_sheets_are_read_as_they_were_written_the_newest_first(shelf: Shelf) -> None:
    await shelf.make()
    assert await shelf.next_name() == "drill-1"
    for number in (9, 10, 2):
        await shelf.write(sheet(number))
    assert [one.id for one in await shelf.read_all()] == ["drill-10", "drill-9", "drill-2"]
    assert [one.id for one in await shelf.read_all(but={"drill-10"})] == ["drill-9", "drill-2"]
    assert await shelf.read("drill-9") == sheet(9)
    assert await shelf.read("drill-3") is None
    assert await shelf.next_name() == "drill-11"


async def test_there_is_nothing_where_there_was_no_drill_yet(shelf: Shelf) -> None:
    assert await shelf.read_all() == []
    assert await shelf.next_name() == "drill-1"


@pytest.mark.parametrize(
    "name", ["", "drill-", "drill-x", "drill-٣", "../drill-1", "drill-1/..", "drill-" + "9" * 5000]
)
async def test_what_is_no_name_of_a_drill_is_no_drill(shelf: Shelf, name: str) -> None:
    assert number_of(name) is None
    assert await shelf.read(name) is None


async def test_a_file_that_is_no_sheet_is_said_once_and_in_nobodys_way(shelf: Shelf) -> None:
    await shelf.make()
    await shelf.write(sheet(1))
    (shelf.folder / "drill-2.json").write_text("{}")
    (shelf.folder / "drill-3.json").write_text("not even JSON")
    with capture_logs() as logs:
        for _ in range(2):
            assert [one.id for one in await shelf.read_all()] == ["drill-1"]
    assert [Path(line["path"]).name for line in logs] == ["drill-3.json", "drill-2.json"]
    assert await shelf.next_name() == "drill-4"


async def test_only_the_newest_are_kept(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 2)
    await shelf.make()
    for number in (1, 2, 3, 10):
        await shelf.write(sheet(number))
    await shelf.prune()
    assert [one.id for one in await shelf.read_all()] == ["drill-10", "drill-3"]


async def test_a_disk_that_cannot_be_written_is_unavailable_in_words(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    shelf = Shelf(tmp_path / "state" / "drills")
    with pytest.raises(Unavailable, match="Not a directory") as refused:
        await shelf.make()
    assert refused.value.hint == f"ls -ld {shelf.folder}"
    shelf.close()
