"""How answers and failures add up to what is known."""

from __future__ import annotations

from hasupervisor.model import Miss, ProbeView, Progress, Said
from hasupervisor.observe import evidence
from hasupervisor.observe.answers import Health
from hasupervisor.observe.evidence import counted, missed, news, prompted

NEW = ProbeView("r1")
HEALTHY = Health(Said.HEALTHY)


def answered(view: ProbeView, health: Health, now: float) -> ProbeView:
    """An answer that took a tenth of a second."""
    return evidence.answered(view, health, now, now - 0.1)


def test_a_proof_is_as_old_as_the_question_and_only_a_healthy_answer_is_one() -> None:
    view = evidence.answered(NEW, HEALTHY, 10.0, 9.5)
    assert view.asked_at == 9.5
    assert evidence.answered(view, Health(Said.UNHEALTHY), 12.0, 11.5).asked_at == 9.5
    assert evidence.answered(view, Health(Said.LOADING), 12.0, 11.5).asked_at == 9.5


def working(steps: int, tokens: int = 0, in_flight: int = 1, queued: int = 0) -> Health:
    return Health(Said.HEALTHY, "", Progress(in_flight, queued, steps, tokens))


def test_failures_count_in_a_row_and_remember_when_the_row_began() -> None:
    view = missed(NEW, Miss.REFUSED, "connection refused", 10.0)
    view = missed(view, Miss.SILENT, "no answer in 2 s", 12.0)
    assert (view.failures, view.first_failure_at, view.miss, view.error) == (2, 10.0, Miss.SILENT, "no answer in 2 s")
    view = answered(view, HEALTHY, 13.0)
    assert (view.failures, view.first_failure_at, view.answered_at, view.successes) == (0, None, 13.0, 1)
    assert missed(view, Miss.BROKEN, "reset", 14.0).first_failure_at == 14.0


def test_an_unhealthy_answer_is_an_answer_not_a_failure() -> None:
    view = answered(answered(NEW, HEALTHY, 1.0), Health(Said.UNHEALTHY, "GPU lost"), 2.0)
    assert (view.said, view.reason, view.failures, view.successes, view.unhealthies) == (
        Said.UNHEALTHY,
        "GPU lost",
        0,
        0,
        1,
    )
    view = answered(view, Health(Said.UNHEALTHY, "GPU lost"), 3.0)
    assert view.unhealthies == 2
    view = answered(view, HEALTHY, 4.0)
    assert (view.unhealthies, view.reason, view.successes) == (0, "", 1)


def test_a_loading_answer_is_neither_success_nor_failure() -> None:
    view = answered(missed(NEW, Miss.REFUSED, "", 1.0), Health(Said.LOADING), 2.0)
    assert (view.said, view.successes, view.failures, view.unhealthies) == (Said.LOADING, 0, 0, 0)


def test_progress_is_dated_by_growth_of_steps_or_tokens() -> None:
    view = answered(NEW, working(5, 50), 1.0)
    assert view.progressed_at == 1.0  # the first report begins the count
    view = answered(view, working(5, 50), 2.0)
    assert view.progressed_at == 1.0
    view = answered(view, working(5, 51), 3.0)
    assert view.progressed_at == 3.0
    view = answered(view, working(6, 51), 4.0)
    assert view.progressed_at == 4.0


def test_an_idle_instance_counts_as_progressing_and_a_queue_alone_does_not() -> None:
    view = answered(NEW, working(5), 1.0)
    assert answered(view, working(5, in_flight=0), 2.0).progressed_at == 2.0
    assert answered(view, working(5, in_flight=0, queued=1), 2.0).progressed_at == 1.0


def test_counts_that_began_anew_are_a_life_sign() -> None:
    assert answered(answered(NEW, working(500), 1.0), working(3), 2.0).progressed_at == 2.0


def test_an_instance_that_reports_no_progress_has_none_and_a_report_left_out_once_is_kept() -> None:
    assert answered(NEW, HEALTHY, 1.0).progressed_at is None
    view = answered(answered(NEW, working(5), 1.0), HEALTHY, 2.0)
    assert view.progress is not None
    assert (view.progressed_at, view.progress_at, view.answered_at) == (1.0, 1.0, 2.0), "and is as old as it is"


def test_prompts_count_failures_in_a_row_and_a_good_one_is_progress() -> None:
    view = prompted(prompted(NEW, "its answer is empty", 1.0), "answered 500", 2.0)
    assert (view.prompt_ok, view.prompt_failures, view.prompt_error, view.progressed_at) == (
        False,
        2,
        "answered 500",
        None,
    )
    view = prompted(view, "", 3.0)
    assert (view.prompt_ok, view.prompt_failures, view.prompt_error, view.prompted_at) == (True, 0, "", 3.0)
    assert view.progressed_at == 3.0


def test_the_progress_counter_dates_progress_when_it_moves() -> None:
    view = counted(NEW, None, 7.0, 1.0)
    assert view.progressed_at == 1.0
    assert counted(view, 7.0, 7.0, 2.0) == view
    assert counted(view, 7.0, 8.0, 3.0).progressed_at == 3.0


def test_news_is_what_a_decision_may_hang_on() -> None:
    steady = NEW
    for at in range(20):
        steady = answered(steady, working(at), float(at))
    assert not news(steady, answered(steady, working(99), 21.0))
    assert news(NEW, answered(NEW, HEALTHY, 1.0))
    assert news(steady, missed(steady, Miss.SILENT, "", 22.0))
    assert news(missed(NEW, Miss.SILENT, "", 1.0), missed(missed(NEW, Miss.SILENT, "", 1.0), Miss.SILENT, "", 2.0))
    assert news(steady, prompted(steady, "", 22.0))
    assert not news(prompted(steady, "", 22.0), prompted(steady, "", 52.0))
