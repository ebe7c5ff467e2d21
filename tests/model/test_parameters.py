"""Which parameters are done, which are refused by name, which are told as ignored; and the bounds of every number."""

from __future__ import annotations

from typing import Any

import openai.types.chat.completion_create_params as openai_chat
import openai.types.completion_create_params as openai_completions
import pytest
from transformers import GenerationConfig

from model_api import legacy
from model_api.backends.base import Defaults
from model_api.openai_body import Ask, parse_chat, parse_completion
from model_api.openai_names import CHAT, COMPLETION, REFUSED, WITHOUT_EFFECT
from model_api.problems import Problem, Unanswerable

USER = {"role": "user", "content": "x"}

# Name -> a value that would change an answer, of vLLM's protocol for both endpoints (its own beyond OpenAI's).
OF_VLLM: dict[str, Any] = {
    "min_p": 0.1, "min_tokens": 5, "stop_token_ids": [5], "use_beam_search": True, "length_penalty": 2.0,
    "include_stop_str_in_output": True, "skip_special_tokens": False, "spaces_between_special_tokens": False,
    "truncate_prompt_tokens": 10, "prompt_logprobs": 1, "allowed_token_ids": [5], "bad_words": ["x"],
    "add_special_tokens": "x", "structured_outputs": {"choice": ["a"]}, "guided_choice": ["a"],
    "guided_json": {}, "guided_regex": "a*", "guided_grammar": "x", "logits_processors": ["x"], "priority": 5,
    "return_tokens_as_token_ids": True, "return_token_ids": True, "kv_transfer_params": {}, "vllm_xargs": {"a": 1},
    "prompt_embeds": "x", "grammar": "x",
}  # fmt: skip
OF_VLLM_CHAT: dict[str, Any] = {
    "echo": True, "add_generation_prompt": False, "continue_final_message": True, "documents": [{}],
    "chat_template": "x", "chat_template_kwargs": {"a": 1}, "mm_processor_kwargs": {"a": 1}, "include_reasoning": False,
    "enable_thinking": True,
}  # fmt: skip
OF_OPENAI: dict[str, Any] = {
    "n": 2, "best_of": 2, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}, "presence_penalty": 0.5,
    "frequency_penalty": 0.5, "suffix": "x", "tools": [{}], "tool_choice": "required", "functions": [{}],
    "function_call": {"name": "x"}, "response_format": {"type": "json_object"}, "modalities": ["audio"], "audio": {},
    "reasoning_effort": "high", "verbosity": "low", "prediction": {}, "moderation": {}, "web_search_options": {},
    "store": True, "service_tier": "flex",
}  # fmt: skip
OF_TRANSFORMERS: dict[str, Any] = {
    "max_length": 50, "max_new_tokens": 5, "min_length": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2,
    "num_return_sequences": 2, "typical_p": 0.5, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.5,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "penalty_alpha": 0.5, "early_stopping": True, "guidance_scale": 2.0,
    "suppress_tokens": [5], "eos_token_id": 5, "stop_strings": ["x"], "bad_words_ids": [[5]], "sequence_bias": {"a": 1},
    "max_time": 1.0, "exponential_decay_length_penalty": [1, 1.1], "renormalize_logits": True,
}  # fmt: skip


def chat(**more: Any) -> Ask:
    return parse_chat({"messages": [USER], **more}, Defaults())


def completion(**more: Any) -> Ask:
    return parse_completion({"prompt": "x", **more}, Defaults())


def refusal(body: dict[str, Any], parse: Any = chat) -> Problem:
    with pytest.raises(Unanswerable) as told:
        parse(**body)
    return told.value.problem


@pytest.mark.parametrize("name", [*OF_VLLM, *OF_VLLM_CHAT, *OF_OPENAI, *OF_TRANSFORMERS])
def test_a_parameter_that_is_known_elsewhere_and_not_done_here_is_refused_by_its_name(name: str) -> None:
    value = {**OF_VLLM, **OF_VLLM_CHAT, **OF_OPENAI, **OF_TRANSFORMERS}[name]
    for parse in (chat, completion):
        problem = refusal({name: value}, parse)
        assert (problem.status, problem.field, problem.code) == (400, name, "unsupported_value")
        assert problem.words.startswith(f"{name}: ")
        assert problem.headers()["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_thinking", False),
        ("thinking", {"type": "disabled"}),
        ("chat_template_kwargs", {}),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_to_ask_a_model_that_does_not_think_not_to_think_is_no_mistake(name: str, value: object) -> None:
    assert chat(**{name: value}).ignored == ()


@pytest.mark.parametrize("name", [*OF_VLLM, *OF_VLLM_CHAT, *OF_OPENAI, *OF_TRANSFORMERS])
def test_a_null_asks_for_nothing(name: str) -> None:
    assert chat(**{name: None}).ignored == ()
    assert completion(**{name: None}).ignored == ()


def test_every_parameter_of_openais_client_and_of_transformers_is_in_a_table() -> None:
    known = CHAT | COMPLETION | WITHOUT_EFFECT | set(REFUSED)
    names = {
        *openai_chat.CompletionCreateParamsBase.__annotations__,
        *openai_completions.CompletionCreateParamsBase.__annotations__,
        *GenerationConfig().to_dict(),
    }
    assert names <= known


def test_what_is_done_is_not_refused_too() -> None:
    assert not (CHAT | COMPLETION) & (WITHOUT_EFFECT | set(REFUSED))
    assert not WITHOUT_EFFECT & set(REFUSED)


def test_logprobs_of_0_ask_a_completion_for_the_chosen_tokens_and_are_refused() -> None:
    assert refusal({"logprobs": 0}, completion).field == "logprobs"


def test_names_that_nobody_knows_are_told_and_those_of_messages_too() -> None:
    assert chat(temprature=0.5, foo={}).ignored == ("temprature", "foo")
    assert completion(temprature=0.5).ignored == ("temprature",)
    message = {**USER, "foo": [[]], "name": "n", "annotations": [], "audio": None}
    asked = chat(messages=[message, {**USER, "foo": 1}])
    assert asked.ignored == ("messages.foo",)
    assert asked.messages[0] == {"role": "user", "content": "x", "name": "n"}
    assert legacy.parse({"prompt": "x", "top_k": 5}).ignored == ("top_k",)


# --- bounds ---------------------------------------------------------------------------------------------------------

# Name -> values at its bounds, and values beyond them.
BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, 2], [-1e-9, 2.0001, 1e308, -(10**30)]),
    "top_p": ([0, 1], [-0.1, 1.0001, 10**30]),
    "max_tokens": ([1, 2**31 - 1], [0, -1, 2**31, 2**63, 10**30]),
    "top_k": ([-1, 0, 2**31 - 1], [-2, 2**31, 2**63, 10**30]),
    "repetition_penalty": ([0.01, 10], [0, -1, 1e-40, 0.0099, 10.1, 1e308]),
    "seed": ([-(2**63), 2**64 - 1], [-(2**63) - 1, 2**64, 10**30]),
    "timeout": ([0.001, 86400], [0, -1, 1e-9, 86401, 10**30]),
}
BEYOND = [(name, value) for name, (_, values) in BOUNDS.items() for value in values]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (values, _) in BOUNDS.items() for value in values])
def test_a_number_at_its_bound_is_taken(name: str, value: Any) -> None:
    assert chat(**{name: value})
    assert completion(**{name: value})


@pytest.mark.parametrize(("name", "value"), BEYOND)
def test_a_number_beyond_its_bounds_is_refused_by_its_name(name: str, value: Any) -> None:
    for parse in (chat, completion):
        problem = refusal({name: value}, parse)
        assert (problem.status, problem.field) == (400, name)


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**30])
def test_max_completion_tokens_has_the_bounds_of_max_tokens(value: int) -> None:
    assert refusal({"max_completion_tokens": value}).field == "max_completion_tokens"


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_length", -1), ("max_length", 2**31), ("max_length", 10**30), ("top_p", 1.1), ("top_p", -1),
     ("temperature", 100.1), ("temperature", -1e-9)],
)  # fmt: skip
def test_the_numbers_of_the_published_api_are_bounded_too(name: str, value: Any) -> None:
    with pytest.raises(Unanswerable) as told:
        legacy.parse({"prompt": "x", name: value})
    assert (told.value.problem.status, told.value.problem.field) == (422, name)
    assert told.value.problem.headers()["x-should-retry"] == "false"


@pytest.mark.parametrize("token", [-1, 2**31, 10**30, 1.0, True, "5", None, []])
def test_a_prompt_of_ids_is_one_of_whole_numbers_from_0(token: Any) -> None:
    problem = refusal({"prompt": [5, token]}, completion)
    assert (problem.field, problem.words) == ("prompt", "prompt[1]: must be a token id, a whole number of 0 or more")


# --- forms ----------------------------------------------------------------------------------------------------------


def test_a_list_of_one_prompt_is_that_prompt_whether_text_or_ids() -> None:
    assert completion(prompt=["x"]).prompt == "x"
    assert completion(prompt=[[5, 6]]).prompt == (5, 6)
    for several in (["x", "y"], [[5], [6]]):
        assert refusal({"prompt": several}, completion).words == ("prompt: one prompt a request, not a list of several")
    for empty in ([], [[]]):
        assert refusal({"prompt": empty}, completion).words == "prompt: must not be empty"
    assert refusal({"prompt": {}}, completion).words == "prompt: must be a string, or a list of token ids"


def test_stream_options_need_a_stream() -> None:
    problem = refusal({"stream_options": {"include_usage": True}})
    assert problem.words == "stream_options: is only allowed when stream is true"
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize("content", ["", None, []])
def test_a_system_message_may_be_empty(content: Any) -> None:
    for role in ("system", "developer", "assistant"):
        asked = chat(messages=[{"role": role, "content": content}, USER])
        assert asked.messages[0] == {"role": "assistant" if role == "assistant" else "system", "content": ""}


def test_a_result_of_the_role_function_is_a_tools_result() -> None:
    asked = chat(messages=[USER, {"role": "function", "name": "f", "content": "22"}])
    assert asked.messages[1] == {"role": "tool", "name": "f", "content": "22"}


def test_an_assistants_refusal_is_what_it_said() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    said = chat(messages=[{"role": "assistant", "content": parts}, {"role": "assistant", "refusal": "no"}, USER])
    assert [message["content"] for message in said.messages] == ["ab", "no", "x"]
    problem = refusal({"messages": [{"role": "user", "content": parts}]})
    assert problem.words == "messages[0].content[1].type: only an assistant's message has refusals"


@pytest.mark.parametrize("key", ["audio", "function_call"])
def test_a_key_of_a_message_that_would_be_lost_is_refused(key: str) -> None:
    assert refusal({"messages": [{**USER, key: {"name": "f"}}]}).field == f"messages[0].{key}"
