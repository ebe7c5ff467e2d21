"""From tokens to what a client may see."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_api.backends.base import Codec, LoadedModel
from model_api.backends.words import FirstCodec, SecondCodec, ThirdCodec
from model_api.text import BROKEN, Assembler, Detokenizer, StopStrings, Tidy
from tests.model.published import write_first_words, write_later_words

TEXTS = st.text(
    alphabet=st.one_of(st.sampled_from("你好，晚上！ abc,\n👋🏽é[]"), st.characters(codec="utf-8")), max_size=60
)


def byte_ids(text: str) -> list[int]:
    """One id a byte: the worst vocabulary there is."""
    return list(text.encode())


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def pieces_of(decode: object, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode)  # type: ignore[arg-type]
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@settings(deadline=None)
@given(TEXTS)
def test_bytes_come_out_as_whole_characters_and_all_of_them(text: str) -> None:
    shown = pieces_of(decode_bytes, byte_ids(text))
    assert "".join(shown) == text
    if BROKEN not in text:
        assert not any(BROKEN in piece for piece in shown)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_bytes_that_are_no_text_still_come_to_an_end(data: bytes) -> None:
    shown = "".join(pieces_of(decode_bytes, list(data)))
    assert shown.replace(BROKEN, "") == decode_bytes(list(data)).replace(BROKEN, "")


def test_garbage_is_shown_after_a_while_and_does_not_pile_up() -> None:
    detokenizer = Detokenizer(decode_bytes)
    shown = [detokenizer.push(0x80) for _ in range(500)]
    assert len("".join(shown)) > 400


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_the_embedded_tokenizer_streams_what_it_decodes_at_once(embedded: LoadedModel, text: str) -> None:
    ids = embedded.codec.encode(text)
    shown = pieces_of(embedded.codec.decode, ids)
    assert "".join(shown) == embedded.codec.decode(ids)
    if BROKEN not in text:
        assert not any(BROKEN in piece for piece in shown)


@settings(deadline=None)
@given(TEXTS, st.data())
def test_what_continues_a_text_is_what_the_whole_has_after_it(text: str, data: st.DataObject) -> None:
    ids = byte_ids(text)
    border = data.draw(st.integers(0, len(ids)))
    detokenizer = Detokenizer(decode_bytes, ids[:border])
    shown = "".join(detokenizer.push(token) for token in ids[border:]) + detokenizer.finish()
    if BROKEN not in text:
        assert decode_bytes(ids[:border]).rstrip(BROKEN) + shown == text or border == len(ids)
    if border == len(ids):
        assert shown == ""


def test_half_a_character_before_a_continuation_that_does_not_end_it_is_not_given_out() -> None:
    assembler = Assembler(decode_bytes, (), None, before=list("é你".encode()[:-1]))
    assert "".join(assembler.push(token) for token in byte_ids("abc")) + assembler.finish() == "abc"


@pytest.mark.parametrize("words", [FirstCodec, SecondCodec, ThirdCodec])
def test_a_completion_keeps_the_space_between_the_prompt_and_its_first_word(
    words: Callable[[Path], Codec], tmp_path: Path
) -> None:
    write_first_words(tmp_path)
    write_later_words(tmp_path)
    codec = words(tmp_path)
    prompt = codec.encode("Hello, how")
    whole = codec.encode("Hello, how are you today?")
    frame = set(codec.encode(""))
    continued = [token for token in whole if token not in frame][len(prompt) - len(frame) :]
    assembler = Assembler(codec.decode, (), None, before=prompt)
    assert "".join(map(assembler.push, continued)) + assembler.finish() == " are you today?"


# --- stop strings -------------------------------------------------------------------------------------------------


def through_stops(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    filtered = StopStrings(stops)
    text = "".join(filtered.push(piece) for piece in pieces)
    return text + filtered.finish(), filtered.found


def test_a_stop_string_across_the_borders_of_pieces_is_found() -> None:
    assert through_stops(["one t", "w", "o th", "ree"], ["two"]) == ("one ", True)


def test_what_only_looked_like_the_beginning_of_a_stop_string_is_shown() -> None:
    assert through_stops(["on", "e tw", "ice"], ["two"]) == ("one twice", False)
    assert through_stops(["one tw"], ["two"]) == ("one tw", False)


def test_the_first_of_several_stop_strings_to_be_complete_counts() -> None:
    assert through_stops(["abcdef"], ["ef", "cd"]) == ("ab", True)
    assert through_stops(["aba"], ["aba", "b"]) == through_stops(["a", "b", "a"], ["aba", "b"]) == ("a", True)


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_cut_a_stream_where_they_would_cut_the_whole(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    ends = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert through_stops(pieces, stops) == expected


# --- tidying ------------------------------------------------------------------------------------------------------


def tidied_at_once(text: str) -> str:
    """What ChatGLM-6B's own server does to a whole answer."""
    text = text.strip().replace("[[训练时间]]", "2023年")
    for mark, wide in zip(",!:;?", "，！：；？", strict=True):
        text = re.sub(rf"(?<=[\u4e00-\u9fff])\{mark}", wide, text)
        text = re.sub(rf"\{mark}(?=[\u4e00-\u9fff])", wide, text)
    return text


@settings(deadline=None)
@given(st.text("你好年,!:?; \n[]训练时间a", max_size=40), st.lists(st.integers(1, 6), max_size=40))
def test_a_stream_is_tidied_as_the_whole_answer_is(text: str, sizes: list[int]) -> None:
    tidy = Tidy(training_date=True, punctuation=True)
    shown, rest = "", text
    for size in sizes:
        shown, rest = shown + tidy.push(rest[:size]), rest[size:]
    shown += tidy.push(rest) + tidy.finish()
    assert shown == tidied_at_once(text)


@pytest.mark.parametrize("text", ["\n你好", "  hi \n\n", "", "\n \n", "a  b"])
def test_space_around_an_answer_goes_and_space_inside_stays(text: str) -> None:
    tidy = Tidy()
    assert "".join(tidy.push(character) for character in text) + tidy.finish() == text.strip()


def test_a_raw_completion_keeps_its_space() -> None:
    assembler = Assembler(decode_bytes, (), None)
    text = "".join(assembler.push(token) for token in byte_ids("\n a \n")) + assembler.finish()
    assert text == "\n a \n"


@pytest.mark.parametrize(
    ("stop", "text", "left"), [(" ", "ab cd", "ab"), ("\n", "ab \ncd", "ab "), ("b ", "ab c", "a")]
)
def test_a_stop_string_that_ends_with_space_ends_a_chat_answer_with_its_own_token(
    stop: str, text: str, left: str
) -> None:
    assembler = Assembler(decode_bytes, (stop,), Tidy())
    shown = ""
    for token in byte_ids(text[: text.index(stop) + len(stop)]):
        assert not assembler.stopped
        shown += assembler.push(token)
    assert (shown, assembler.stopped) == (left, True)
    assert assembler.finish() == ""


def test_a_stop_string_that_is_held_at_the_end_is_still_found() -> None:
    assembler = Assembler(decode_bytes, ("END",), Tidy())
    shown = "".join(assembler.push(token) for token in byte_ids("ok END"))
    assert (shown + assembler.finish(), assembler.stopped) == ("ok ", True)
