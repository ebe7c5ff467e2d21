"""The project's pages, taken apart: their code, their links, their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.checkout import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.M)
SPAN = re.compile(r"(`+)(.+?)\1", re.S)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)


@dataclass(frozen=True, slots=True)
class Page:
    path: Path
    text: str

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """Fenced blocks: language and content."""
        return FENCE.findall(self.text)

    @property
    def prose(self) -> str:
        """The text without its blocks."""
        return INDENTED.sub("\n", FENCE.sub("\n", self.text))

    @property
    def spans(self) -> list[str]:
        """What stands in backticks in the prose, each on one line."""
        return [" ".join(words.split()) for _, words in SPAN.findall(self.prose)]

    @property
    def lines_of_code(self) -> list[str]:
        """Every span, and every line of every block."""
        rest = FENCE.sub("\n", self.text)
        blocks = [content for _, content in self.blocks] + INDENTED.findall(rest)
        return [*self.spans, *(line.strip() for block in blocks for line in block.splitlines())]

    @property
    def links(self) -> list[str]:
        return LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """Of its headings, as GitHub makes them."""
        titles = [SPAN.sub(r"\2", title) for title in HEADING.findall(FENCE.sub("\n", self.text))]
        return {re.sub(r"[^\w\- ]", "", LINK.sub("", title).lower()).strip().replace(" ", "-") for title in titles}


def pages() -> Iterator[Page]:
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        yield Page(path, path.read_text(encoding="utf-8"))
