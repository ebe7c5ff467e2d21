"""The scanner that knows the lines, against files made at random whose lines are known."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasupervisor.config.lines import KeyPath, key_lines

# --- files made at random: each piece is a text, with the line within it of every path that it gives -----------------

Piece = tuple[str, list[tuple[KeyPath, int]]]

bare = st.text(alphabet="abcxyz019_-", min_size=1, max_size=4)
awkward = st.text(alphabet="a b=[]{}#.,'é\\\"", max_size=5)
comments = st.sampled_from(["", "# min = 3", "# [service]", '# "', "#"])
blank = st.lists(comments, max_size=2).map(lambda lines: "".join(f"{line}\n" for line in lines))


def basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


strings = st.one_of(
    awkward.map(basic),
    awkward.filter(lambda text: "'" not in text).map(lambda text: f"'{text}'"),
    awkward.map(lambda text: '"""\n' + text.replace("\\", "\\\\").replace('"', '\\"') + '\n[x]\ny = 1\n"""'),
    awkward.filter(lambda text: "'" not in text).map(lambda text: f"'''{text}\n# z\n'''"),
    st.just('"""two quotes ""\\""""'),
    st.just('"""two before the end"""""'),
    st.just("'''one before the end''''"),
)
scalars = st.one_of(strings, st.integers(-9, 9).map(str), st.just("true"), st.just("1979-05-27T07:32:00Z"))


@st.composite
def values(draw: st.DrawFn, path: KeyPath, depth: int = 2) -> Piece:
    kind = draw(st.sampled_from(["scalar", "list", "table"])) if depth else "scalar"
    if kind == "scalar":
        return draw(scalars), []
    text, found = ("[", []) if kind == "list" else ("{", [])
    names = draw(st.lists(bare, max_size=3, unique=True))
    for index, name in enumerate(names):
        if kind == "list":  # only in a list may lines end and comments stand
            text += draw(st.sampled_from(["", " ", "\n", "\n# ], 3\n", " # x\n  "]))
        below: KeyPath = (*path, index if kind == "list" else name)
        found.append((below, text.count("\n")))
        if kind == "table":
            text += f" {name} = "
        inner, deeper = draw(values(below, depth - 1))
        found += [(where, text.count("\n") + line) for where, line in deeper]
        text += inner + ("," if index < len(names) - 1 or (kind == "list" and draw(st.booleans())) else "")
    return text + ("]" if kind == "list" else " }"), found


@st.composite
def pairs(draw: st.DrawFn, above: KeyPath, name: str) -> Piece:
    quoted = draw(st.booleans())
    dotted = draw(st.booleans())
    full: KeyPath = (*above, name, "sub") if dotted else (*above, name)
    before = draw(blank)
    space = draw(st.sampled_from(["", " ", "\t"]))
    written = (basic(name) if quoted else name) + (f"{space}.{space}sub" if dotted else "")
    value, found = draw(values(full))
    text = f"{before}{space}{written}{space}={space}"
    start = text.count("\n")
    after = draw(st.sampled_from(["", " ", " # = 2", "\t#[a]"]))
    return f"{text}{value}{after}\n", [(full, start), *((path, start + line) for path, line in found)]


@st.composite
def documents(draw: st.DrawFn) -> Piece:
    text, found = "", []
    sections = draw(st.lists(st.one_of(bare, awkward), min_size=1, max_size=3, unique=True))
    for section in sections:
        text += draw(blank)
        found.append(((section,), text.count("\n")))
        space = draw(st.sampled_from(["", " "]))
        text += f"{space}[{space}{basic(section)}{space}] # [no]\n"
        for name in draw(st.lists(bare, max_size=4, unique=True)):
            piece, within = draw(pairs((section,), name))
            found += [(path, text.count("\n") + line) for path, line in within]
            text += piece
    return text, found


@given(documents())
def test_every_key_is_found_on_its_line(document: Piece) -> None:
    text, expected = document
    tomllib.loads(text)  # what is made is TOML
    assert key_lines(text) == {path: [line + 1] for path, line in expected}


@given(documents(), st.data())
def test_every_key_of_the_parser_is_known_to_the_scanner(document: Piece, data: st.DataObject) -> None:
    table = tomllib.loads(document[0])
    known = key_lines(document[0])
    for section, content in table.items():
        for name in content:
            assert any(path[:2] == (section, name) for path in known)


@given(st.text(alphabet="ab=[]{}.,#\"'\\\n\t 1", max_size=40))
def test_a_text_that_is_not_toml_ends_the_scan_all_the_same(text: str) -> None:
    for lines in key_lines(text).values():
        assert all(1 <= line <= text.count("\n") + 1 for line in lines)


@pytest.mark.parametrize(
    ("text", "path", "lines"),
    [
        ("service.min = 2\n", ("service", "min"), [1]),
        ("[ docker . env ]\nA = '1'\n", ("docker", "env", "A"), [2]),
        ('["docker"."env"]\n"A" = "1"\n', ("docker", "env", "A"), [2]),
        ('[docker]\nenv = { A = "1", B = "2" }\n', ("docker", "env", "B"), [2]),
        ('[docker]\nvolumes = [\n  # one\n  "/a:/a",\n  "/b:/b",\n]\nimage = "x"\n', ("docker", "volumes", 1), [5]),
        ('[docker]\nvolumes = [\n  # one\n  "/a:/a",\n  "/b:/b",\n]\nimage = "x"\n', ("docker", "image"), [7]),
        ('[health]\nprompt = """\nmin = 3\n"""\ntimeout = 1.0\n', ("health", "timeout"), [5]),
        ("[service]\nmin = 1\nmin = 2\n", ("service", "min"), [2, 3]),
        ("[service]\nmin = 1 # min = 2\n", ("service", "min"), [2]),
    ],
)
def test_lines_of_the_usual_ways_to_write_a_key(text: str, path: KeyPath, lines: list[int]) -> None:
    assert key_lines(text)[path] == lines


def test_windows_line_ends_count_once() -> None:
    assert key_lines("[a]\r\nb = 1\r\nc = 2\r\n")["a", "c"] == [3]
