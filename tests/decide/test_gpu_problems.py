"""What a person is told of an instance that no GPU can take."""

from __future__ import annotations

from hasupervisor.decide.plan import plan
from hasupervisor.model import Colour, Problem
from tests.decide.gpu_facts import card, gpus, name, serving, wanted, world


def test_an_instance_that_no_card_has_room_for_is_a_problem_with_the_list_of_cards_as_the_next_command() -> None:
    decided = plan(world([serving(1, 0), wanted(2)], gpus(card(0))))
    (problem,) = decided.problems
    assert isinstance(problem, Problem)
    assert (problem.subject, problem.hint) == (name(2), "chatglm-hactl gpu list")
    assert problem.sentence.startswith("waits for a GPU: no GPU has 13.0 GB for it: GPU 0: ")
    assert decided.health is Colour.YELLOW


def test_one_that_only_waits_for_another_to_load_is_none() -> None:
    decided = plan(world([wanted(1), wanted(2)], gpus(card(0), card(1))))
    assert decided.problems == ()
