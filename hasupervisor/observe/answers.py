"""What an instance's answers mean, by CONTRACT 3: health, synthetic prompt, progress counter. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hasupervisor.model import Miss, Progress, Said
from hasupervisor.observe.exchange import Answer, Missed, Question

WORDS_LIMIT = 200  # characters of an instance's own words that are kept

FINE = frozenset({"healthy", "ok", "up", "ready", "pass", "alive"})
"""Words for "healthy" in "status": the contract's first, the others are what similar servers say (llama.cpp: "ok")."""

OPENAI_MAX_TOKENS = 16  # of the synthetic prompt: enough for a sign of life, cheap for the instance


class Dialect(StrEnum):
    """How an instance is prompted."""

    AUTO = "auto"  # chatglm; where there is no such thing, openai
    CHATGLM = "chatglm"  # POST /
    OPENAI = "openai"  # POST /v1/chat/completions


@dataclass(frozen=True, slots=True)
class Health:
    """A usable answer to GET <health.path>."""

    said: Said
    reason: str = ""
    progress: Progress | None = None


def read_health(answer: Answer) -> Health:
    """The health that an answer tells; raises Missed(ERROR_STATUS) for what the contract calls a failure."""
    well = 200 <= answer.status < 300
    told = _object(answer)
    status = told.get("status") if told is not None else None
    word = status.strip().lower() if isinstance(status, str) else None
    if told is not None and (well or answer.status == 503):
        if word == "loading":
            return Health(Said.LOADING, progress=read_progress(told))
        if word == "unhealthy":
            return Health(Said.UNHEALTHY, _words(told.get("reason")), read_progress(told))
    if not well:
        raise Missed(Miss.ERROR_STATUS, _status_words(answer))
    if word is not None and word not in FINE:
        raise Missed(Miss.ERROR_STATUS, f'answered {answer.status} with "status": {_words(word)!r}')
    return Health(Said.HEALTHY, progress=read_progress(told) if told is not None else None)


def read_progress(told: Mapping[str, object]) -> Progress | None:
    """The "progress" of a health answer; None where there is none. What is not a number counts as 0."""
    progress = told.get("progress")
    if not isinstance(progress, dict):
        return None
    return Progress(
        in_flight=int(_number(progress.get("in_flight"))),
        queued=int(_number(progress.get("queued"))),
        steps=int(_number(progress.get("steps"))),
        tokens=int(_number(progress.get("tokens"))),
        step_running_s=_number(progress.get("step_running_s")),
        idle_s=_number(progress.get("idle_s")),
    )


def prompt_question(dialect: Dialect, prompt: str, model: str = "") -> Question:
    """The synthetic prompt as a request; `model` is named only where it is known (some servers demand it)."""
    if dialect is Dialect.OPENAI:
        asked: dict[str, object] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": OPENAI_MAX_TOKENS,
            "stream": False,
        }
        if model:
            asked["model"] = model
        return Question("POST", "/v1/chat/completions", _spell(asked))
    return Question("POST", "/", _spell({"prompt": prompt, "history": []}))


def prompt_fault(dialect: Dialect, answer: Answer) -> str:
    """Why the answer to a synthetic prompt is not good, in words; "" when it is: 200 and a text that is not empty."""
    if answer.status != 200:
        return _status_words(answer)
    told = _object(answer)
    if told is None:
        return "its answer is not a JSON object"
    text = _openai_text(told) if dialect is Dialect.OPENAI else told.get("response")
    if not isinstance(text, str):
        return "its answer has no text"
    return "" if text.strip() else "its answer is empty"


def first_model(answer: Answer) -> str:
    """The first model that GET /v1/models names; "" where it names none."""
    told = _object(answer) if answer.status == 200 else None
    models = told.get("data") if told is not None else None
    if isinstance(models, list) and models and isinstance(models[0], dict):
        name = models[0].get("id")
        return name if isinstance(name, str) else ""
    return ""


def counter_value(name: str, answer: Answer) -> float | None:
    """A counter of a Prometheus text page, summed over its labels; None where it is not there."""
    if answer.status != 200:
        return None
    line = re.compile(rb"^" + re.escape(name.encode()) + rb"(?:\{[^\n]*\})?[ \t]+([^\s]+)", re.MULTILINE)
    values = [_float(found) for found in line.findall(answer.body)]
    return sum(values) if values else None


def _openai_text(told: Mapping[str, object]) -> object:
    """The text of the first choice: its content, or its reasoning where the few tokens went there."""
    choices = told.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    message = choices[0].get("message")
    if not isinstance(message, dict):
        return choices[0].get("text")
    texts = [message.get(key) for key in ("content", "reasoning_content", "reasoning")]
    return next((text for text in texts if isinstance(text, str) and text), texts[0])


def _object(answer: Answer) -> dict[str, object] | None:
    """The JSON object in a body; None for anything else, a body too long to be read whole included."""
    if not answer.whole:
        return None
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        number = float(value)
    except OverflowError:
        return 0.0
    return max(0.0, number) if math.isfinite(number) else 0.0


def _float(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _spell(asked: dict[str, object]) -> bytes:
    return json.dumps(asked, ensure_ascii=False).encode()


def _words(value: object) -> str:
    """Somebody else's words on one line, without control characters, not too long."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * WORDS_LIMIT]).split())
    return line if len(line) <= WORDS_LIMIT else line[: WORDS_LIMIT - 1] + "…"


def _status_words(answer: Answer) -> str:
    said = _words(answer.body[: 4 * WORDS_LIMIT].decode(errors="replace"))
    return f"answered {answer.status}: {said}" if said else f"answered {answer.status}"
