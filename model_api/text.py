"""From tokens to text a client may see now: whole characters, the model's habits put right, stop strings kept back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what decoders put where bytes do not make a character (yet)


class Detokenizer:
    """Decodes token by token. Text is given out only up to the last whole character.

    A character of a byte-level vocabulary may span up to four tokens, and a sentencepiece word is decoded differently
    at the start of a text: so a short window of earlier tokens is decoded along with each new one. `before`: the tokens
    of the text that is continued, of which nothing is given out; without them the first word would lose its space.
    """

    WINDOW = 8  # tokens kept for context
    PATIENCE = 32  # tokens after which bytes that make no character are shown as they are

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before[-self.WINDOW :])
        text = decode(self._ids) if self._ids else ""
        # A character whose first bytes end what is continued is given out with its last ones, if they ever come.
        self._open = min(3, len(text) - len(text.rstrip(BROKEN)))
        self._shown = len(text) - self._open  # characters of the window's text already given out
        self._border = len(self._ids)  # tokens of the window that end at a whole character

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if self._open and not self._settle_start(text):
            return ""
        unfinished = 0
        if len(self._ids) - self._border <= self.PATIENCE:
            unfinished = min(3, len(text) - len(text.rstrip(BROKEN)))
        fresh = text[self._shown : len(text) - unfinished]
        self._shown += len(fresh)
        if not unfinished:
            self._slide()
        return fresh

    def finish(self) -> str:
        """What was kept back: the remains of a character that never came whole."""
        return self._decode(self._ids)[self._shown + self._open :] if self._ids else ""

    def _settle_start(self, text: str) -> bool:
        """Whether it is known which broken characters are of the text that is continued: those are not given out."""
        rest = text[self._shown :]
        whole = rest.lstrip(BROKEN)
        if not whole and len(self._ids) - self._border <= self.PATIENCE:
            return False
        self._shown += min(self._open, len(rest) - len(whole))
        self._open = 0
        return True

    def _slide(self) -> None:
        if len(self._ids) > self.WINDOW:
            self._ids = self._ids[self._border :]
            self._shown = len(self._decode(self._ids))
        self._border = len(self._ids)


class Tidy:
    """Puts right what chat models of this family do around an answer, in a stream as in a whole text.

    Space before and after the answer goes (GLM-4 begins with a line feed). As the remote code of ChatGLM does, the
    marker of the training date is filled in (`training_date`), and half-width marks next to Chinese characters become
    full-width (`punctuation`, ChatGLM-6B alone).
    """

    _MARKER = "[[训练时间]]"
    _WIDE = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}  # noqa: RUF012 - constant
    _MARK = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")

    def __init__(self, *, training_date: bool = False, punctuation: bool = False) -> None:
        self._training_date = training_date
        self._punctuation = punctuation
        self._held = ""
        self._before = ""  # the last character given out, raw: the left neighbour of what comes
        self._begun = False

    @property
    def held_space(self) -> str:
        """The space that is kept back because the answer may end with it; empty when other text is kept too."""
        return self._held if self._held.isspace() else ""

    def push(self, text: str) -> str:
        """`text` and what was held, as far as what follows cannot change it any more."""
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        keep = len(text) - self._open_end(text)
        self._held = text[keep:]
        return self._settle(text[:keep], after=text[keep : keep + 1])

    def finish(self) -> str:
        """The rest, without the space at its end."""
        return self._settle(self._held.rstrip(), after="")

    def _open_end(self, text: str) -> int:
        """How many characters at the end may still change: space, a mark whose right neighbour is unknown, a marker."""
        body = text.rstrip()
        end = len(text) - len(body)
        if end:
            return end  # nothing before the space can change any more: no marker has space in it
        if self._punctuation and body and body[-1] in self._WIDE:
            return 1
        if self._training_date:
            for size in range(min(len(body), len(self._MARKER) - 1), 0, -1):
                if self._MARKER.startswith(body[-size:]):
                    return size
        return 0

    def _settle(self, text: str, after: str) -> str:
        if not text:
            return text
        before, self._before = self._before, text[-1]
        if self._punctuation:
            around = self._MARK.sub(lambda mark: self._WIDE[mark.group()], before + text + after)
            text = around[len(before) : len(around) - len(after)]
        return text.replace(self._MARKER, "2023年") if self._training_date else text


class StopStrings:
    """Ends a text before the first of some strings, also where they cross the borders of tokens.

    The first is the one that is complete first: so the borders make no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of the text that can be no stop string; after `found`, nothing more."""
        if not self._stops or self.found:
            return "" if self.found else text
        text = self._held + text
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = len(text) - self._open_end(text)
        self._held = text[keep:]
        return text[:keep]

    def would_end_with(self, text: str) -> bool:
        """Whether a stop string would be complete if `text` came now."""
        return bool(text) and any(stop in self._held + text for stop in self._stops)

    def finish(self) -> str:
        """What was held back as a stop string's possible beginning, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _open_end(self, text: str) -> int:
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(len(text), longest), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0


class Assembler:
    """The whole way of one answer: tokens in, text for the client out."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        tidy: Tidy | None,
        before: Sequence[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(decode, before)
        self._tidy = tidy
        self._stops = StopStrings(stops)
        self._ended = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.found

    def push(self, token: int) -> str:
        """The text that may be shown after this token."""
        text = self._detokenizer.push(token)
        if self._tidy is None:
            return self._stops.push(text)
        shown = self._stops.push(self._tidy.push(text))
        space = self._tidy.held_space
        # Space at the end is held, yet whatever follows leaves it as it is: a stop string of space ends the text now.
        if not self._stops.found and self._stops.would_end_with(space):
            shown += self._stops.push(space)
        return shown

    def finish(self) -> str:
        """What is left to show at the end; nothing when called again."""
        if self._ended or self.stopped:
            return ""
        self._ended = True
        text = self._detokenizer.finish()
        if self._tidy:
            text = self._tidy.push(text) + self._tidy.finish()
        text = self._stops.push(text)
        return text if self._stops.found else text + self._stops.finish()
