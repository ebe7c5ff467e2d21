"""What the pages say exists: every command with its options, every key, every link; every configuration is valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from hasupervisor import config
from hasupervisor.config.keys import all_keys, is_used, value_of
from hasupervisor.config.schema import Config
from hasupervisor.ctl.main import COMMANDS, cli
from hasupervisor.daemon import _parser
from tests.checkout import ROOT
from tests.docs.pages import Page, pages

PAGES = list(pages())
HAND_WRITTEN = [page for page in PAGES if page.path.name != "hactl.md"]  # that one is made of the commands themselves

ENDS = re.compile(r"\s(?:#|&&|>|2>|->)|[`,;|)]|\s{2,}\S")  # what is not of the command any more
PLACEHOLDERS = {"N": "3", "S": "60", "ID": "op-1", "NAME": "chatglm-01", "FILE": "config.toml", "…": "x"}
KEY = re.compile(r"([a-z]+)\.([a-z_]+)(?![a-z_…])")
PROJECT_FILE = re.compile(r"(?:tests|hasupervisor|docs|config|bench|systemd|tools|model_api)/[\w./*-]*\.\w+")
FILES = ("py", "md", "conf", "toml", "j2", "sock", "service", "io", "socket", "pid", "log", "db", "json", "cfg")


def command_lines(page: Page, program: str) -> list[list[str]]:
    """The arguments of every command line of that program on the page."""
    found = []
    for line in page.lines_of_code:
        for rest in re.split(rf"(?:^|[\s/(`]){program}(?=\s|$)", line)[1:]:
            words = ENDS.split(f"{rest} ")[0].strip()
            found.append([PLACEHOLDERS.get(word, word) for word in shlex.split(words) if word not in ("...", "→")])
    return found


def understood(arguments: list[str]) -> None:
    """Parses as the tool would, down to the last option. Raises click.UsageError; nothing is carried out."""
    command: click.Command = cli
    context = cli.make_context("chatglm-hactl", list(arguments))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = command.resolve_command(context, rest)
        assert command is not None, name
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=str)
def test_every_command_that_a_page_names_is_understood(page: Page) -> None:
    wrong = []
    for arguments in command_lines(page, "chatglm-hactl"):
        try:
            understood(arguments)
        except (click.exceptions.NoArgsIsHelpError, click.MissingParameter):
            continue  # named, not typed: "see `chatglm-hactl scale`"
        except click.ClickException as error:
            wrong.append(f"chatglm-hactl {shlex.join(arguments)}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=str)
def test_every_option_of_the_daemon_that_a_page_names_exists(page: Page) -> None:
    known = {option for action in _parser()._actions for option in action.option_strings}
    named = {word for words in command_lines(page, "chatglm-had") for word in words if word.startswith("-")}
    assert named <= known, named - known


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_key_that_a_page_names_exists(page: Page) -> None:
    sections = set(Config.model_fields)
    named = [found for span in page.spans if (found := KEY.match(span)) and found[1] in sections]
    wrong = [found[0] for found in named if found[2] not in FILES and not _is_key(found[1], found[2])]
    assert not wrong


def _is_key(section: str, key: str) -> bool:
    try:
        value_of(Config(), f"{section}.{key}")
    except (AttributeError, KeyError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Page) -> None:
    wrong = []
    for link in page.links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        if not target.exists():
            wrong.append(f"{link}: there is no {target.name}")
        elif anchor and anchor not in Page(target, target.read_text(encoding="utf-8")).anchors:
            wrong.append(f"{link}: {target.name} has no such heading")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_that_a_page_names_is_there(page: Page) -> None:
    files = [span for span in page.spans if PROJECT_FILE.fullmatch(span)]
    tests = [span for span in page.spans if re.fullmatch(r"test_\w+\*?\.py", span)]
    wrong = [name for name in files if not any(ROOT.glob(name.rstrip("/")))]
    wrong += [name for name in tests if not any(ROOT.glob(f"tests/*/{name}"))]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_configuration_on_a_page_is_valid(page: Page, tmp_path: Path) -> None:
    for number, (language, content) in enumerate(page.blocks):
        if language == "toml":
            file = tmp_path / f"{number}.toml"
            file.write_text(content, encoding="utf-8")
            config.load(file, {})  # raises with every mistake by its line


@pytest.mark.parametrize("page", [page for page in PAGES if page.path.parent != ROOT], ids=str)
def test_the_index_leads_to_every_page(page: Page) -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in Page(index, index.read_text()).links}
    assert page.path == index or page.path in linked


def test_both_readmes_have_the_same_commands_and_the_same_runbook() -> None:
    english, chinese = (Page(ROOT / name, (ROOT / name).read_text()) for name in ("README.md", "README.zh-CN.md"))

    def commands(page: Page) -> list[str]:
        return [content for language, content in page.blocks if language == "sh"]

    assert commands(english) == commands(chinese)
    for program in ("chatglm-hactl", "chatglm-had", "systemctl"):
        assert command_lines(english, program) == command_lines(chinese, program)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_what_a_readme_calls_missing_is_missing(name: str) -> None:
    limits = Page(ROOT / name, (ROOT / name).read_text().rpartition("\n## ")[2])
    promised = {"upgrade", "rollback", "gpu", "drill", "doctor", "top"}
    assert promised.intersection(limits.spans) == promised - set(COMMANDS), f"bring the limits in {name} up to date"
    sections = {span.strip("[]") for span in limits.spans if re.fullmatch(r"\[[a-z]+\]", span)}
    used = {key.partition(".")[0] for key in all_keys() if is_used(key)}
    assert sections == set(Config.model_fields) - used, f"bring the limits in {name} up to date"
