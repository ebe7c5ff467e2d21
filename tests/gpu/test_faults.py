"""The table of GPU faults: every row sees its action, and what is remembered decides what comes of the next fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasupervisor.decide.gpu import faults
from hasupervisor.decide.gpu.faults import TABLE, Action, Row, row_of_xid
from hasupervisor.decide.gpu.judge import (
    Judgement,
    Moment,
    clear,
    heard,
    judge_card,
    judge_driver,
    leaked_bytes,
    quarantine,
)
from hasupervisor.model.gpu import (
    CardRecord,
    CardState,
    CardView,
    DriverState,
    DriverView,
    GpuFact,
    GpuProcess,
    Incident,
    Need,
    Refusal,
    Source,
    Xid,
)

UUID = "GPU-00000000-0000-4000-8000-000000000003"
GB = 10**9
NEED = 13 * GB
START = 6000.0  # a whole minute
FACT = GpuFact(UUID, 3, "NVIDIA L4", "00000000:3B:00.0", START, 24 * GB, 23 * GB, GB, processes_at=START)
CARD = CardView(UUID, 3, FACT)
FRESH = CardRecord(UUID)


def moment(now: float = START, boot: str = "boot-1") -> Moment:
    return Moment(now, 1_700_000_000.0 + now, boot, NEED)


def xid(code: int, at: float = START, pid: int | None = 77, recovery: int | None = None) -> Xid:
    return Xid(code, at, Source.KERNEL, UUID, "0000:3b:00", pid, recovery)


def after(
    *codes: int, instance: str | None = "chatglm-01", record: CardRecord = FRESH, at: float = START, pid: int = 77
) -> Judgement:
    return judge_card(CARD, record, [Incident(xid(code, at, pid), instance) for code in codes], moment(at))


def seen(card: CardView, record: CardRecord = FRESH, at: float = START) -> Judgement:
    return judge_card(card, record, [], moment(at))


# --- one row after the other ------------------------------------------------------------------------------------------

RESTARTS = (8, 11, 13, 25, 31, 32, 43, 68, 69, 80, 109, 94)
RESETS = (48, 95, 140, 172, 46, 62, 110, 119, 120, 136, 143, 156, 158)
REBOOTS = (79, 167)
WARNINGS = (45, 92, 63, 74, *range(144, 151), 1, 999)


@pytest.mark.parametrize("code", RESTARTS)
def test_a_fault_of_a_program_restarts_its_instance_on_the_same_card(code: int) -> None:
    judged = after(code)
    (restart,) = judged.restarts
    assert (restart.uuid, restart.instance) == (UUID, "chatglm-01")
    assert f"Xid {code}, pid 77" in restart.why
    assert (judged.state, judged.evict) == (CardState.OK, None)
    assert judged.notes[0].sentence.endswith("chatglm-01 is restarted")


@pytest.mark.parametrize(
    ("code", "need"),
    [*((code, Need.RESET) for code in RESETS), *((code, Need.REBOOT) for code in REBOOTS), (64, Need.REPAIR)],
)
def test_a_fault_of_the_card_moves_all_that_runs_on_it_and_quarantines_it(code: int, need: Need) -> None:
    judged = after(code)
    held = judged.record.quarantine
    assert held is not None
    assert (held.need, held.boot) == (need, "boot-1")
    assert judged.evict is not None
    assert f"Xid {code}" in judged.evict
    assert (judged.state, judged.restarts, judged.placeable) == (CardState.QUARANTINED, (), False)
    assert judged.reason is not None
    assert f"needs a re{need.removeprefix('re')}" in judged.reason
    (problem,) = judged.problems
    assert (problem.subject, problem.sentence) == ("GPU 3", f"quarantined: {judged.reason}")
    assert {Need.RESET: UUID, Need.REBOOT: "reboot the host", Need.REPAIR: f"gpu clear {UUID}"}[need] in problem.hint


@pytest.mark.parametrize("code", WARNINGS)
def test_an_after_effect_or_a_link_or_an_unknown_fault_is_told_and_nothing_is_done(code: int) -> None:
    judged = after(code)
    assert (judged.state, judged.evict, judged.restarts, judged.record) == (
        CardState.OK,
        None,
        (),
        replace(FRESH, throttled=judged.record.throttled),
    )
    (note,) = judged.notes
    assert f"Xid {code}" in note.sentence


@pytest.mark.parametrize(
    ("recovery", "need"),
    [
        (0, None),
        (1, Need.RESET),
        (2, Need.REBOOT),
        (3, None),
        (4, Need.RESET),
        (5, None),
        (6, Need.RESET),
        (7, Need.REBOOT),
        (99, Need.RESET),
    ],
)
def test_the_drivers_own_verdict_counts_in_the_kernel_log_as_in_the_cards_figures(
    recovery: int, need: Need | None
) -> None:
    by_line = judge_card(CARD, FRESH, [Incident(xid(154, recovery=recovery))], moment())
    by_figure = seen(CardView(UUID, 3, replace(FACT, recovery=recovery)))
    for judged in (by_line, by_figure):
        held = judged.record.quarantine
        assert (held.need if held is not None else None) is need
        assert (judged.evict is not None) is (need is not None)


def test_an_unread_verdict_is_left_to_the_cards_figure() -> None:
    assert after(154).record.quarantine is None


@pytest.mark.parametrize(
    ("card", "state", "need", "words"),
    [
        (
            CardView(UUID, 3, FACT, refusal=Refusal(15, "GPU is lost", START)),
            CardState.LOST,
            Need.REBOOT,
            "GPU is lost",
        ),
        (
            CardView(UUID, 3, FACT, refusal=Refusal(999, "Unknown Error", START, handle=True)),
            CardState.LOST,
            Need.REBOOT,
            "Unknown",
        ),
        (CardView(UUID, 3, FACT, missing_since=START), CardState.LOST, Need.REBOOT, "does not list it"),
        (
            CardView(UUID, 3, FACT, refusal=Refusal(16, "requires reset", START)),
            CardState.QUARANTINED,
            Need.RESET,
            "requires reset",
        ),
        (CardView(UUID, 3, replace(FACT, remap_failed=True)), CardState.QUARANTINED, Need.REPAIR, "no spare one"),
    ],
)
def test_what_nvml_shows_is_as_good_as_a_line(card: CardView, state: CardState, need: Need, words: str) -> None:
    judged = seen(card)
    held = judged.record.quarantine
    assert held is not None
    assert (judged.state, held.need) == (state, need)
    assert judged.evict is not None
    assert words in held.reason
    assert len(judged.notes) == 1
    again = seen(card, judged.record, START + 1)
    assert (again.state, again.record.quarantine, again.notes) == (state, held, ()), "it is told once"


@pytest.mark.parametrize(
    "card",
    [
        CardView(UUID, 3, FACT, silent_since=START),
        CardView(UUID, 3, FACT, refusal=Refusal(999, "Unknown Error", START)),
        CardView(UUID, 3, FACT, refusal=Refusal(17, "Operating System", START)),
        CardView(None, 3, silent_since=START),
    ],
)
def test_a_card_that_nvml_cannot_ask_is_suspect_keeps_its_instances_and_gets_no_new_ones(card: CardView) -> None:
    judged = seen(card)
    assert (judged.state, judged.evict, judged.record.quarantine) == (CardState.SUSPECT, None, None)
    assert not judged.placeable
    assert judged.problems[0].sentence == judged.reason
    assert "nvidia-smi" in judged.problems[0].hint


@pytest.mark.parametrize(
    ("fact", "row"),
    [
        (replace(FACT, remap_pending=True), faults.REMAP_RECORDED),
        (replace(FACT, retirement_pending=True), faults.REMAP_RECORDED),
        (replace(FACT, ecc_uncorrected=7), faults.ECC_COUNTED),
    ],
)
def test_what_waits_for_a_reset_is_a_problem_and_the_card_goes_on(fact: GpuFact, row: Row) -> None:
    judged = seen(CardView(UUID, 3, fact))
    assert (judged.state, judged.evict, judged.placeable) == (CardState.OK, None, True)
    (problem,) = judged.problems
    assert problem.sentence.startswith(row.says)
    assert UUID in problem.hint


def throttled_for(minutes: int, bits: int = 0x40) -> Judgement:
    """Ten minutes, of which the first so many have one second of slow-down."""
    judged = seen(CARD)
    for minute in range(10):
        for second in (5.0, 25.0):
            at = START + 60 * minute + second
            fact = replace(FACT, seen_at=at, throttle=bits if minute < minutes and second == 25.0 else 0x1)
            judged = seen(CardView(UUID, 3, fact), judged.record, at)
    return judged


@pytest.mark.parametrize("bits", [0x8, 0x40, 0x80])
def test_a_card_that_is_slowed_down_in_six_of_ten_minutes_is_placed_on_last(bits: int) -> None:
    judged = throttled_for(6, bits)
    assert (judged.last, judged.state, judged.evict) == (True, CardState.OK, None)
    assert judged.problems[0].sentence == faults.THROTTLED.says


@pytest.mark.parametrize(("minutes", "bits"), [(5, 0x40), (10, 0x4), (10, 0x1)])
def test_a_short_slow_down_or_a_power_cap_is_nothing(minutes: int, bits: int) -> None:
    judged = throttled_for(minutes, bits)
    assert (judged.last, judged.problems) == (False, ())


def test_the_heat_of_ten_minutes_ago_is_forgotten() -> None:
    judged = throttled_for(10)
    for minute in range(10, 15):
        at = START + 60 * minute
        judged = seen(CardView(UUID, 3, replace(FACT, seen_at=at)), judged.record, at)
    assert not judged.last


def holding(used: int, *processes: GpuProcess) -> CardView:
    return CardView(UUID, 3, replace(FACT, memory_free_bytes=23 * GB - used, processes=processes))


def leaking(card: CardView, seconds: float) -> Judgement:
    return seen(card, seen(card).record, START + seconds)


def test_memory_that_nobody_holds_is_a_problem_and_more_than_an_instance_needs_a_quarantine() -> None:
    little = leaking(holding(10 * GB, GpuProcess(5, 5 * GB)), 61)
    assert (little.state, little.record.quarantine) == (CardState.OK, None)
    assert little.problems[0].sentence.endswith(": 5.0 GB")
    much = leaking(holding(20 * GB, GpuProcess(5, 5 * GB)), 61)
    held = much.record.quarantine
    assert held is not None
    assert (much.state, much.evict, held.need) == (CardState.QUARANTINED, None, Need.RESET)
    assert held.reason.endswith(": 15.0 GB")


def test_memory_is_not_called_leaked_at_once_nor_where_the_driver_does_not_tell() -> None:
    assert leaking(holding(20 * GB), 59).problems == ()
    assert leaking(holding(20 * GB, GpuProcess(5, None)), 61).problems == ()
    assert leaked_bytes(replace(FACT, memory_reserved_bytes=None)) is None
    assert leaked_bytes(replace(FACT, mig=True)) is None
    assert leaking(holding(5 * GB, GpuProcess(5, 5 * GB)), 61).problems == ()
    passing = seen(CARD, seen(holding(20 * GB)).record, START + 30)
    assert seen(holding(20 * GB), passing.record, START + 61).problems == (), "it has begun anew"


def test_every_row_of_the_table_is_reached_by_a_test_above() -> None:
    by_xid = {row_of_xid(code) for code in (*RESTARTS, *RESETS, *REBOOTS, *WARNINGS, 64)}
    by_verdict = {faults.VERDICTS[n] for n in range(8)}
    by_figure = {faults.THROTTLED, faults.ECC_COUNTED, faults.SILENT, faults.REFUSES, faults.LEAKS, faults.LEAKS_MUCH}
    assert by_xid | by_verdict | by_figure == set(TABLE)
    tested = {*RESTARTS, *RESETS, *REBOOTS, *WARNINGS, 64}
    assert {code for row in TABLE for code in row.xids} <= tested


def test_no_xid_has_two_rows_and_every_row_has_a_source_and_a_next_command() -> None:
    codes = [code for row in TABLE for code in row.xids]
    assert len(codes) == len(set(codes))
    assert all(row.source and row.hint and row.says for row in TABLE)
    assert all(row.escalation is None or row.action is Action.RESTART for row in TABLE)


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_three_faults_of_programs_within_ten_minutes_move_and_two_do_not() -> None:
    first = after(31)
    second = after(13, record=first.record, at=START + 200)
    assert len(second.restarts) == 1
    third = after(31, record=second.record, at=START + 599)
    assert third.restarts == ()
    assert third.evict is not None
    assert third.evict.endswith("3 times in 10 minutes")
    late = after(31, record=second.record, at=START + 601)
    assert (len(late.restarts), late.evict) == (1, None)


def test_a_second_context_switch_timeout_moves() -> None:
    assert after(109, record=after(109).record, at=START + 1800).evict is not None
    assert after(109, record=after(109).record, at=START + 3700).evict is None


def test_contained_memory_errors_do_not_add_up() -> None:
    judged = after(94)
    for n in range(1, 6):
        judged = after(94, record=judged.record, at=START + 60 * n)
    assert (len(judged.restarts), judged.evict) == (1, None)


def test_one_fault_told_in_many_lines_is_one_fault() -> None:
    judged = after(*[13] * 40)
    assert len(judged.restarts) == 1
    for n in range(1, 30):
        judged = after(13, record=judged.record, at=START + n)
        assert judged.restarts == ()
    assert judged.evict is None
    assert len(judged.record.counted) == 1


def test_the_fault_of_a_process_that_was_started_since_is_another_one() -> None:
    judged = after(31, pid=77)
    for n, pid in enumerate((78, 79), start=1):
        assert len(judged.restarts) == 1
        judged = after(31, pid=pid, record=judged.record, at=START + n)
    assert (judged.restarts, judged.evict is not None) == ((), True)


def test_two_instances_on_a_card_are_restarted_each_for_its_own_fault() -> None:
    both = [Incident(xid(31), "chatglm-01"), Incident(xid(31), "chatglm-02")]
    judged = judge_card(CARD, FRESH, both, moment())
    assert [restart.instance for restart in judged.restarts] == ["chatglm-01", "chatglm-02"]


def test_a_strangers_fault_costs_us_nothing_however_often_it_comes() -> None:
    record = FRESH
    for n in range(5):
        judged = judge_card(CARD, record, [Incident(xid(31, START + 20 * n), foreign=True)], moment(START + 20 * n))
        record = judged.record
        assert (judged.restarts, judged.evict) == ((), None)
        assert "none of ours" in judged.notes[0].sentence


def test_a_graver_fault_replaces_the_reason_and_a_lighter_one_does_not() -> None:
    reset = after(48)
    reboot = after(79, record=reset.record, at=START + 1)
    assert reboot.record.quarantine is not None
    assert reboot.record.quarantine.need is Need.REBOOT
    lighter = after(95, record=reboot.record, at=START + 2)
    assert lighter.record.quarantine == reboot.record.quarantine
    assert lighter.notes == ()


def test_a_reboot_ends_a_quarantine_that_it_mends_and_no_other() -> None:
    for code, ends in ((48, True), (79, True), (64, False)):
        held = after(code).record
        judged = judge_card(CARD, held, [], moment(boot="boot-2"))
        assert (judged.record.quarantine is None) is ends
        assert [note.sentence.startswith("not quarantined any more") for note in judged.notes] == [True] * ends
        assert judge_card(CARD, held, [], moment()).record.quarantine is not None, "a restart of the daemon does not"


def test_a_card_that_is_lost_again_after_two_reboots_needs_a_repair() -> None:
    record = FRESH
    needs = []
    for boot in ("boot-1", "boot-2", "boot-3"):
        judged = judge_card(CARD, record, [Incident(xid(79))], moment(boot=boot))
        record = judged.record
        assert record.quarantine is not None
        needs.append(record.quarantine.need)
    assert needs == [Need.REBOOT, Need.REBOOT, Need.REPAIR]
    assert record.quarantine is not None
    assert "2 reboots have not mended it" in record.quarantine.reason
    assert judge_card(CARD, record, [], moment(boot="boot-4")).record.quarantine == record.quarantine


def test_a_persons_quarantine_moves_nobody_and_only_a_person_ends_it() -> None:
    record = quarantine(FRESH, "noisy fan", "anna", "boot-1", 1_700_000_000.0)
    judged = seen(CARD, record)
    assert (judged.state, judged.evict) == (CardState.QUARANTINED, None)
    assert judged.reason == "noisy fan; by anna, until it is cleared"
    assert judged.problems == (), "it is as somebody wants it"
    broken = after(48, record=judged.record)
    assert broken.evict is not None
    rebooted = judge_card(CARD, broken.record, [], moment(boot="boot-2"))
    assert (rebooted.state, rebooted.reason) == (CardState.QUARANTINED, judged.reason)
    assert seen(CARD, clear(rebooted.record)).state is CardState.OK


def test_clearing_a_card_that_is_still_lost_quarantines_it_again() -> None:
    lost = CardView(UUID, 3, FACT, refusal=Refusal(15, "GPU is lost", START))
    assert seen(lost, clear(seen(lost).record)).state is CardState.LOST


def test_each_fault_is_heard_once_and_nvml_alone_is_believed_where_the_kernel_log_is_closed() -> None:
    kernel = (Incident(xid(31)), Incident(xid(79)))
    nvml = tuple(Incident(replace(xid(code, pid=None), source=Source.NVML)) for code in (31, 79, 45, 154))
    assert heard((*kernel, *nvml), kernel_readable=True) == (*kernel, nvml[1])
    assert heard(nvml, kernel_readable=False) == nvml


# --- the driver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cards", "troubled"),
    [
        (DriverState.OK, (CARD,), False),
        (DriverState.UNKNOWN, (), False),
        (DriverState.ABSENT, (), False),
        (DriverState.ABSENT, (CARD,), True),
        (DriverState.MISMATCHED, (), True),
        (DriverState.WEDGED, (CARD,), True),
        (DriverState.FAILED, (), True),
    ],
)
def test_a_driver_that_cannot_be_asked_is_a_problem_unless_there_never_was_a_card(
    state: DriverState, cards: tuple[CardView, ...], troubled: bool
) -> None:
    problem = judge_driver(DriverView(state, "the driver's sentence", cards=cards))
    assert (problem is not None) is troubled
    if problem is not None:
        assert problem.sentence == "the driver's sentence"
