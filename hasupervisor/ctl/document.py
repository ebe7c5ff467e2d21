"""Reads the daemon's JSON, and says in words where it is not what it should be."""

from __future__ import annotations

from hasupervisor.ctl.errors import Exit, Failure


class Document:
    """One JSON object of an answer, read key by key.

    A key that has to be there and is not, or holds another kind of value, is a `Failure` that names it. The other keys
    (`maybe_…`) may be null or absent alike, so that an older daemon can be read too.
    """

    __slots__ = ("_path", "raw")

    def __init__(self, raw: object, path: str) -> None:
        if not isinstance(raw, dict):
            raise unexpected(f"{path} is {_kind(raw)}, not an object")
        self.raw: dict[str, object] = raw
        self._path = path

    def text(self, key: str) -> str:
        value = self.maybe_text(key)
        if value is None:
            raise self._wrong(key, "text")
        return value

    def maybe_text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def number(self, key: str) -> float:
        value = self.maybe_number(key)
        if value is None:
            raise self._wrong(key, "a number")
        return value

    def maybe_number(self, key: str) -> float | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        return value

    def flag(self, key: str, *, absent: bool = False) -> bool:
        value = self.raw.get(key, absent)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def part(self, key: str) -> Document:
        return Document(self.raw.get(key), f"{self._path}.{key}")

    def maybe_part(self, key: str) -> Document | None:
        return None if self.raw.get(key) is None else self.part(key)

    def parts(self, key: str) -> list[Document]:
        return [Document(item, f"{self._path}.{key}[{index}]") for index, item in enumerate(self._list(key))]

    def texts(self, key: str) -> list[str]:
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "a list of texts")
        return [str(item) for item in items]

    def _list(self, key: str) -> list[object]:
        value = self.raw.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def _wrong(self, key: str, wanted: str) -> Failure:
        found = _kind(self.raw[key]) if key in self.raw else "not there"
        return unexpected(f"{self._path}.{key} is {found}, not {wanted}")


def unexpected(what: str) -> Failure:
    """The daemon has answered, but not what its description promises: most likely it is another version."""
    hint = "chatglm-hactl version  (are both the same?)"
    return Failure(Exit.FAILED, f"the daemon's answer is not understood: {what}", hint=hint)


def _kind(value: object) -> str:
    names: dict[type, str] = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
