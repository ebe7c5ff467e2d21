"""Requests made to hurt, by chance: bodies of every form with values from the edges, for all three endpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from model_api.openai_names import CHAT, COMPLETION, REFUSED, WITHOUT_EFFECT

CHAT_PATH, COMPLETIONS_PATH = "/v1/chat/completions", "/v1/completions"
NAMES = sorted(CHAT | COMPLETION | set(REFUSED) | WITHOUT_EFFECT | {"max_length", "history", "prompt", "nobody_knows"})
ROLES = ("system", "developer", "user", "assistant", "tool", "observation", "function", "wizard", "")


@dataclass(frozen=True)
class Fuzzed:
    """One request; `leaves`: the client goes as soon as it has sent it."""

    path: str
    body: bytes
    leaves: bool

    def __repr__(self) -> str:
        return f"{self.path} {self.body[:200]!r}{'...' if len(self.body) > 200 else ''}{' leaves' * self.leaves}"


NUMBERS = st.sampled_from((
    0, 1, -1, 2, 5, 0.5, 1e-40, 5e-324, 1e308, -1e308, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 2**64,
    10**30, -(10**30), 0.009, 1.0000001,
))  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from((
        "", " ", "\x00", "\n", "你好", "ping", "<|assistant|>", "<|user|>\nx<|assistant|>", "[gMASK]<sop>",
        "{{ 7 * 7 }}", "{% for", "\ufffd", "\u202e", "👋🏽" * 5, "a" * 3000, "你" * 3000, " " * 3000,
    )),
)  # fmt: skip


def _nested(depth: int, opening: str = "[") -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if opening == "[" else {"a": value}
    return value


EDGES = st.one_of(
    NUMBERS,
    TEXTS,
    st.sampled_from((None, True, False, [], {}, [[]], [{}], {"type": "text"}, {"include_usage": True})),
    st.builds(_nested, st.integers(1, 60), st.sampled_from("[{")),
    st.lists(NUMBERS, max_size=20),
    st.lists(TEXTS, max_size=20),
    st.builds(lambda value, times: [value] * times, NUMBERS, st.sampled_from((100, 5000, 60_000))),
)

GOOD_MESSAGE = st.fixed_dictionaries({"role": st.just("user"), "content": st.sampled_from(("你好", "ping", "x"))})
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(("text", "refusal", "image_url", 5))}, optional={"text": TEXTS}),
    max_size=5,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(ROLES), EDGES), "content": st.one_of(TEXTS, PARTS, EDGES)},
    optional=dict.fromkeys(("name", "tool_calls", "tool_call_id", "refusal", "audio", "metadata", "foo"), EDGES),
)
MESSAGES = st.one_of(
    st.lists(GOOD_MESSAGE, min_size=1, max_size=1),
    st.lists(st.one_of(GOOD_MESSAGE, MESSAGE), max_size=6),
    st.builds(lambda message, times: [message] * times, GOOD_MESSAGE, st.sampled_from((50, 500, 5000))),
    EDGES,
)
PROMPTS = st.one_of(TEXTS, st.lists(st.integers(-1, 800), max_size=50), EDGES)
HISTORY = st.one_of(st.lists(st.lists(TEXTS, min_size=1, max_size=3), max_size=5), EDGES)
# Few tokens and little time, unless chance says otherwise: what is tried is the door, not the model's endurance.
SHORT = {"max_tokens": 2, "timeout": 1.0}


def _bodies(least: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    edges = st.dictionaries(st.sampled_from(NAMES), EDGES, max_size=2)
    return st.builds(lambda body, more: {**SHORT, **body, **more}, least, edges)


def _request(path: str, body: dict[str, Any], damage: int, leaves: bool) -> Fuzzed:
    sent = json.dumps(body, ensure_ascii=bool(damage % 2)).encode("utf-8", "surrogatepass")
    if damage == 1:
        sent = sent[: len(sent) // 2]
    elif damage == 2:
        sent = sent.replace(b":", b"\xff", 1)
    elif damage == 3:
        sent = sent.replace(b'"', b"", 1)
    return Fuzzed(path, sent, leaves)


def _requests(path: str, least: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Fuzzed]:
    damage = st.sampled_from((0, 0, 0, 0, 0, 0, 0, 4, 5, 1, 2, 3))  # beyond 3: only how text is spelt
    leaves = st.sampled_from((False, False, False, False, False, True))
    return st.builds(_request, st.just(path), _bodies(least), damage, leaves)


REQUESTS = st.one_of(
    _requests(CHAT_PATH, st.fixed_dictionaries({"messages": MESSAGES}, optional={"stream": st.booleans()})),
    _requests(COMPLETIONS_PATH, st.fixed_dictionaries({"prompt": PROMPTS}, optional={"stream": st.booleans()})),
    _requests("/", st.fixed_dictionaries({"prompt": TEXTS, "max_length": st.just(20)}, optional={"history": HISTORY})),
    st.builds(Fuzzed, st.sampled_from((CHAT_PATH, COMPLETIONS_PATH, "/")), st.binary(max_size=200), st.booleans()),
)
