"""Builds a shadow of nginx's whole configuration with the candidate files in it, for `nginx -t` to judge.

nginx takes relative paths (certificates, mime.types, further includes) from the folder of its main file, so the shadow
is a tree that looks like the real one from there: the files on the way to ours are copied with their includes turned to
the shadow, everything else is a symbolic link.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hasupervisor.act.nginx.conffile import Source, Tree, quoted, real


def build_shadow(tree: Tree, candidates: Mapping[str, str], root: Path) -> Path:
    """Makes `root` anew and returns the main file in it. `tree` was read with the same `candidates` (by real path).

    Raises OSError.
    """
    shutil.rmtree(root, ignore_errors=True)
    turned = leading_to(tree, frozenset(candidates))
    for path in turned:
        copy = below(root, path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_turned_text(tree.sources[path], turned, root), encoding="utf-8", errors="surrogateescape")
    main = below(root, tree.main)
    main.parent.mkdir(parents=True, exist_ok=True)
    # The folders above the main file as well: `../ssl/key.pem` is a path too.
    for folder in {*(path.parent for path in turned), *tree.main.parents}:
        _link_the_rest(folder, below(root, folder))
    return main


def below(root: Path, path: Path) -> Path:
    """Where the shadow has an absolute path."""
    return root / path.relative_to("/")


def leading_to(tree: Tree, ours: frozenset[str]) -> frozenset[Path]:
    """Our files and every file that includes one of them, however indirectly."""
    leading = {path for path in tree.sources if real(path) in ours}
    while True:
        more = {
            source.path
            for source in tree.sources.values()
            if source.path not in leading and any(leading.intersection(include.matches) for include in source.includes)
        }
        if not more:
            return frozenset(leading)
        leading |= more


def _turned_text(source: Source, turned: frozenset[Path], root: Path) -> str:
    """The file's text, its absolute includes of copied files turned to the copies. Relative ones find them anyway."""
    text = source.text
    for include in sorted(source.includes, key=lambda include: include.word.start, reverse=True):
        word = include.word
        if word.text.startswith("/") and turned.intersection(include.matches):
            text = text[: word.start] + quoted(f"{root}{word.text}") + text[word.end :]
    return text


def _link_the_rest(folder: Path, copy: Path) -> None:
    copy.mkdir(parents=True, exist_ok=True)
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        return  # what we may not list, nginx reaches by the paths that are linked already
    for entry in entries:
        link = copy / entry.name
        if not os.path.lexists(link):
            link.symlink_to(entry.path)
