"""Every parameter that OpenAI, vLLM, SGLang or transformers know by name: done, without effect, or refused.

A parameter that is not done is taken only with the value that asks for nothing: silence about any other would be a
wrong answer. What is in none of the tables is told to the client as ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from model_api.problems import Problem, Unanswerable

INVALID = 400

COMMON = frozenset((
    "model", "temperature", "top_p", "max_tokens", "stop", "seed", "stream", "stream_options", "top_k",
    "repetition_penalty", "ignore_eos", "timeout",
))  # fmt: skip
CHAT = COMMON | {"messages", "max_completion_tokens"}
COMPLETION = COMMON | {"prompt"}

# Of the client's own books, or of caches that this server does not have: no answer depends on them.
WITHOUT_EFFECT = frozenset((
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "parallel_tool_calls", "request_id", "cache_salt", "use_cache", "disable_compile", "compile_config",
    "transformers_version", "_from_model_config", "low_memory",
))  # fmt: skip

_NONE: tuple[Any, ...] = (None,)
_OFF = (None, False)
_ON = (None, True)
_ZERO = (None, 0)
_ONE = (None, 1)
_LIST: tuple[Any, ...] = (None, [])
_DICT: tuple[Any, ...] = (None, {})

# Name -> the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    # OpenAI's
    "n": _ONE, "best_of": _ONE, "logprobs": _OFF, "top_logprobs": _ZERO, "logit_bias": _DICT,
    "presence_penalty": _ZERO, "frequency_penalty": _ZERO, "echo": _OFF, "suffix": (None, ""), "tools": _LIST,
    "tool_choice": (None, "none", "auto"), "functions": _LIST, "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"]), "audio": _NONE,
    "reasoning_effort": (None, "none"), "verbosity": (None, "medium"), "prediction": _NONE, "moderation": _NONE,
    "web_search_options": _NONE, "store": _OFF, "service_tier": (None, "auto", "default"),
    # vLLM's and SGLang's
    "min_p": _ZERO, "min_tokens": _ZERO, "stop_token_ids": _LIST, "use_beam_search": _OFF, "length_penalty": _ONE,
    "include_stop_str_in_output": _OFF, "skip_special_tokens": _ON, "spaces_between_special_tokens": _ON,
    "truncate_prompt_tokens": _NONE, "truncation_side": _NONE, "prompt_logprobs": _NONE, "allowed_token_ids": _LIST,
    "bad_words": _LIST, "add_generation_prompt": _ON, "continue_final_message": _OFF, "documents": _LIST,
    "chat_template": _NONE, "chat_template_kwargs": (*_DICT, {"enable_thinking": False}),
    "mm_processor_kwargs": _DICT, "media_io_kwargs": _DICT,
    "structured_outputs": _NONE, "structural_tag": _NONE, "guided_json": _NONE, "guided_regex": _NONE,
    "guided_choice": _NONE, "guided_grammar": _NONE, "guided_decoding_backend": _NONE,
    "guided_whitespace_pattern": _NONE, "grammar": _NONE, "regex": _NONE, "ebnf": _NONE, "json_schema": _NONE,
    "priority": _ZERO, "return_tokens_as_token_ids": _OFF, "return_token_ids": _OFF, "logits_processors": _LIST,
    "vllm_xargs": _DICT, "kv_transfer_params": _NONE, "prompt_embeds": _NONE, "include_reasoning": _ON,
    "thinking_token_budget": _NONE, "enable_thinking": _OFF,
    "thinking": (None, {"type": "disabled"}), "repetition_detection": _NONE,
    "stop_regex": _NONE, "no_stop_trim": _OFF, "separate_reasoning": _ON, "stream_reasoning": _ON, "lora_path": _NONE,
    "custom_logit_processor": _NONE, "return_hidden_states": _OFF,
    # transformers' GenerationConfig
    "max_length": _NONE, "max_new_tokens": _NONE, "min_length": _ZERO, "min_new_tokens": _ZERO, "do_sample": _ON,
    "num_beams": _ONE, "num_beam_groups": _ONE, "num_return_sequences": _ONE, "early_stopping": _OFF,
    "typical_p": _ONE, "epsilon_cutoff": _ZERO, "eta_cutoff": _ZERO, "diversity_penalty": _ZERO,
    "encoder_repetition_penalty": _ONE, "no_repeat_ngram_size": _ZERO, "encoder_no_repeat_ngram_size": _ZERO,
    "bad_words_ids": _LIST, "force_words_ids": _LIST, "renormalize_logits": _OFF, "constraints": _LIST,
    "forced_bos_token_id": _NONE, "forced_eos_token_id": _NONE, "remove_invalid_values": _OFF,
    "exponential_decay_length_penalty": _NONE, "suppress_tokens": _LIST, "begin_suppress_tokens": _LIST,
    "sequence_bias": _DICT, "token_healing": _OFF, "guidance_scale": _ONE, "watermarking_config": _NONE,
    "penalty_alpha": _ZERO, "dola_layers": _NONE, "max_time": _NONE, "stop_strings": _LIST, "top_h": _NONE,
    "output_attentions": _OFF, "output_hidden_states": _OFF, "output_logits": _OFF, "output_scores": _OFF,
    "return_dict_in_generate": _OFF, "pad_token_id": _NONE, "bos_token_id": _NONE, "eos_token_id": _NONE,
    "decoder_start_token_id": _NONE, "cache_implementation": _NONE, "cache_config": _NONE, "max_cache_len": _NONE,
    "prefill_chunk_size": _NONE, "continuous_batching_config": _NONE, "is_assistant": _OFF,
    "num_assistant_tokens": _NONE, "num_assistant_tokens_schedule": _NONE, "assistant_confidence_threshold": _NONE,
    "assistant_early_exit": _NONE, "assistant_ensemble_weight": _NONE, "assistant_lookbehind": _NONE,
    "target_lookbehind": _NONE, "prompt_lookup_num_tokens": _NONE, "max_matching_ngram_size": _NONE,
    "speculation_type": _NONE, "use_mtp": _OFF,
}  # fmt: skip
# The two whose meaning differs: a template writes a prompt's special tokens, bare text gets them from the tokenizer.
_REFUSED_OF_CHAT: Mapping[str, tuple[Any, ...]] = {"add_special_tokens": _OFF}
_REFUSED_OF_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {"add_special_tokens": _ON}

MISPLACED = {"prompt": "messages", "messages": "prompt", "max_completion_tokens": "max_tokens"}


def refuse_unsupported(body: Mapping[str, Any], *, chat: bool) -> tuple[str, ...]:
    """Raises Unanswerable for a parameter that is known and not done; returns the names that are not known at all."""
    done = CHAT if chat else COMPLETION
    own = _REFUSED_OF_CHAT if chat else _REFUSED_OF_COMPLETIONS
    unknown = []
    for name, value in body.items():
        if name in done or name in WITHOUT_EFFECT:
            continue
        neutral = own.get(name) or REFUSED.get(name)
        if neutral is not None:
            _check_neutral(name, value, neutral)
        elif name in MISPLACED:
            words = f"{name}: is no parameter of this endpoint; {MISPLACED[name]} is"
            raise Unanswerable(Problem(INVALID, words, "unknown_parameter", name))
        else:
            unknown.append(name)
    return tuple(unknown)


def _check_neutral(name: str, value: object, neutral: Collection[Any]) -> None:
    # By type too: 0 == False and 1 == True, and `n: true` is not `n: 1`.
    if not any(value == other and type(value) in _like(other) for other in neutral):
        words = f"{name}: {shown(value)} is not supported by this server; leave it out"
        raise Unanswerable(Problem(INVALID, words, "unsupported_value", name))


def _like(value: object) -> Iterable[type]:
    return (int, float) if type(value) in (int, float) else (type(value),)


def shown(value: object) -> str:
    """A value in a message; of lists and objects only what they are, which may be long."""
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, (list, dict)) and len(value) > 4:
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    return repr(value)[:60]
