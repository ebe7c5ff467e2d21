"""The requests of docs/control-api.md about drills, against the real server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from hasupervisor.report.desk import DrillAsked, DrillPlan, NoSuch, Refused
from tests.ctl import drills
from tests.report.clerk import Clerk
from tests.report.serving import Served, lines_of, me, served

PLAN = DrillPlan("kill", "chatglm-02", 10.0, 60.0, "SIGKILL to chatglm-02 (pid 4712)", ())


@dataclass
class DrillClerk(Clerk):
    """A desk whose drill is told by the test how far it has come."""

    moves: list[dict[str, Any]] = field(default_factory=lambda: [drills.drill("begins")])
    plan: DrillPlan = PLAN
    refused: Exception | None = None

    def drill_on(self, move: dict[str, Any]) -> None:
        self.moves.append(move)
        self.move()

    async def plan_drill(self, asked: DrillAsked) -> DrillPlan:
        self.told.append(("plan", asked))
        return self.plan

    async def begin_drill(self, asked: DrillAsked, *, by: str) -> dict[str, Any]:
        if self.refused is not None:
            raise self.refused
        self.told.append(("drill", asked, by))
        return self.moves[0]

    async def drills(self) -> Sequence[dict[str, Any]]:
        return self.moves[-1:]

    async def drill(self, drill_id: str) -> dict[str, Any]:
        if drill_id != "drill-3":
            raise NoSuch(f"there is no drill {drill_id}", "chatglm-hactl drill")
        return self.moves[-1]

    async def watch_drill(self, drill_id: str) -> AsyncIterator[dict[str, Any]]:
        told = len(self.moves) - 1
        while True:
            moved = self._moved
            for move in self.moves[told:]:
                told += 1
                yield move
                if move["state"] != "running":
                    return
            await moved.wait()

    async def call_off_drill(self, drill_id: str, *, by: str) -> dict[str, Any]:
        self.told.append(("call off", drill_id, by))
        self.drill_on(drills.drill("it was called off", "cancelled"))
        return self.moves[-1]


async def begin(ha: Served, **body: Any) -> Any:
    return await ha.client.post("/v1/drill", json=body)


async def test_a_drill_that_begins_is_202_with_who_asked_and_the_usual_load() -> None:
    clerk = DrillClerk()
    async with served(clerk) as ha:
        answer = await begin(ha, fault="kill")
    assert (answer.status_code, answer.json()) == (202, clerk.moves[0])
    assert clerk.told == [("drill", DrillAsked("kill", None, 10.0, None, force=False), me())]


async def test_everything_about_a_drill_can_be_said() -> None:
    clerk = DrillClerk()
    async with served(clerk) as ha:
        answer = await begin(ha, fault="hang", name="chatglm-02", rate=2.5, seconds=90, force=True)
        assert answer.status_code == 202
    assert clerk.told == [("drill", DrillAsked("hang", "chatglm-02", 2.5, 90.0, force=True), me())]


@pytest.mark.parametrize("objections", [(), ("1 of 2 serve; at least 2 have to",)])
async def test_a_dry_run_is_200_with_what_would_be_done_and_begins_nothing(objections: tuple[str, ...]) -> None:
    clerk = DrillClerk(plan=DrillPlan("kill", "chatglm-02", 10.0, 60.0, "SIGKILL to chatglm-02 (pid 4712)", objections))
    async with served(clerk) as ha:
        answer = await begin(ha, fault="kill", dry_run=True)
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "fault": "kill",
            "name": "chatglm-02",
            "rate": 10.0,
            "seconds": 60.0,
            "what": "SIGKILL to chatglm-02 (pid 4712)",
            "refused": "it could hurt" if objections else None,
            "problems": list(objections),
        },
    )
    assert [told[0] for told in clerk.told] == ["plan"]


async def test_a_drill_that_could_hurt_is_409_with_every_reason() -> None:
    clerk = DrillClerk(refused=Refused("it could hurt, for 2 reasons", "chatglm-hactl drill kill --force", ("a", "b")))
    async with served(clerk) as ha:
        answer = await begin(ha, fault="kill")
    found = answer.json()
    assert (answer.status_code, found["title"], found["problems"]) == (409, "Refused", ["a", "b"])
    assert found["hint"] == "chatglm-hactl drill kill --force"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "fault: is missing"),
        ({"fault": "explode"}, "fault: should be 'kill', 'hang', 'sick', 'slow', 'spike', 'daemon' or 'gateway'"),
        ({"fault": "daemon", "name": "chatglm-02"}, "name: daemon is not an instance's fault, so it takes no name"),
        ({"fault": "kill", "rate": 0}, "rate: should be greater than 0"),
        ({"fault": "kill", "rate": 5000}, "rate: should be less than or equal to 1000"),
        ({"fault": "kill", "seconds": 0}, "seconds: should be greater than 0"),
        ({"fault": "kill", "secnds": 9}, "secnds: unknown key; did you mean seconds?"),
    ],
)
async def test_what_cannot_be_understood_is_400_and_begins_nothing(body: dict[str, Any], detail: str) -> None:
    clerk = DrillClerk()
    async with served(clerk) as ha:
        answer = await begin(ha, **body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(detail)
    assert clerk.told == []


async def test_the_last_drills_are_listed_and_one_can_be_looked_at() -> None:
    clerk = DrillClerk()
    async with served(clerk) as ha:
        assert (await ha.client.get("/v1/drill")).json() == {"drills": clerk.moves}
        assert (await ha.client.get("/v1/drill/drill-3")).json() == clerk.moves[0]
        missing = await ha.client.get("/v1/drill/drill-9")
        assert (missing.status_code, missing.json()["hint"]) == (404, "chatglm-hactl drill")
        assert (await ha.client.get("/v1/drill/drill-9?watch=1")).status_code == 404


async def test_a_drill_is_watched_move_by_move_until_it_ends() -> None:
    clerk = DrillClerk()
    async with served(clerk) as ha:
        watching = asyncio.create_task(ha.client.get("/v1/drill/drill-3?watch=1"))
        clerk.drill_on(drills.drill("kill: made"))
        clerk.drill_on(drills.drill("33 sent, 0 failed", "done"))
        answer = await watching
    assert answer.headers["content-type"] == "application/x-ndjson"
    told = lines_of(answer.text)
    assert told == clerk.moves[-len(told) :]
    assert told[-1]["state"] == "done"


async def test_a_drill_is_called_off_by_whoever_asks() -> None:
    clerk = DrillClerk()
    async with served(clerk) as ha:
        answer = await ha.client.delete("/v1/drill/drill-3")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert clerk.told == [("call off", "drill-3", me())]
