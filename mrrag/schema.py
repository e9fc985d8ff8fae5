"""What JSON from elsewhere may hold: kinds of values, and a check that names the field at fault.

A kind is a frozen description. Its ``check`` returns the clean value, or raises
:class:`FieldError` with the path of the field, what came, and what is allowed. Texts are never
repeated in an error, since they may say who a patient is. It knows no file and no format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = [
    "Choice",
    "FieldError",
    "Flag",
    "Items",
    "Kind",
    "Nullable",
    "Number",
    "Record",
    "Row",
    "Table",
    "Text",
    "Whole",
    "refusing_fields",
]


class FieldError(ValueError):
    """A value that is not allowed.

    Attributes
    ----------
    path : str
        Where it stands, such as ``files[vectors.index].bytes``; empty for the whole value.
    came, allowed : str
        What it is, and what it may be.
    """

    def __init__(self, came: str, allowed: str, path: str = "") -> None:
        self.came, self.allowed, self.path = came, allowed, path
        super().__init__(f"{path or 'The whole'} is {came}. Allowed: {allowed}.")

    def inside(self, name: str, *, item: bool = False) -> FieldError:
        """Return the same error, of a field or an item of ``name``."""
        outer = f"[{name}]" if item else name
        joint = "." if self.path and not self.path.startswith("[") else ""
        return FieldError(self.came, self.allowed, f"{outer}{joint}{self.path}")


class Kind(Protocol):
    """What a value may be."""

    def check(self, value: object) -> Any:
        """Return the clean value, or raise :class:`FieldError`."""


@contextmanager
def refusing_fields(place: str, remedy: str, refuse: Callable[[str], Exception]) -> Iterator[None]:
    """Turn a :class:`FieldError` into the error that a person reads.

    Parameters
    ----------
    place
        The file, for the sentence.
    remedy
        A sentence that says what to do.
    refuse
        Makes the error of three sentences: what came, what is allowed, what to do.
    """
    try:
        yield
    except FieldError as error:
        what = f"In {place}, {error.path}" if error.path else place
        raise refuse(f"{what} is {error.came}. Allowed: {error.allowed}. {remedy}") from None


def _described(value: object) -> str:
    """Return what a value is, in a few words without its text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        digits = repr(value)
        return digits if len(digits) <= 24 else f"{digits[:16]}... ({len(digits)} digits)"
    if isinstance(value, str):
        return f"a text of {len(value):,} characters"
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,}"
    return (
        f"an object of {len(value):,} fields" if isinstance(value, Mapping) else "of no JSON type"
    )


def _between(least: float, most: float) -> str:
    return f"from {least:,} to {most:,}"


@dataclass(frozen=True)
class Text:
    """A text that UTF-8 can hold.

    Attributes
    ----------
    least, most : int
        Its length, in characters.
    pattern : str
        A regular expression for the whole of it; empty for none.
    what : str
        What ``pattern`` means, for the error.
    """

    least: int = 0
    most: int = 4096
    pattern: str = ""
    what: str = ""

    def check(self, value: object) -> str:
        """Return the text, or raise :class:`FieldError`."""
        if not isinstance(value, str):
            raise FieldError(_described(value), self._allowed())
        if not self.least <= len(value) <= self.most:
            raise FieldError(_described(value), self._allowed())
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise FieldError("a text with half a character", self._allowed()) from None
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise FieldError("another text", self._allowed())
        return value

    def _allowed(self) -> str:
        return self.what or f"a text of {self.least:,} to {self.most:,} characters"


@dataclass(frozen=True)
class Choice:
    """One of a few texts; only for values that never say who a patient is."""

    values: Collection[str]

    def check(self, value: object) -> str:
        """Return the text, or raise :class:`FieldError`."""
        if isinstance(value, str) and value in self.values:
            return value
        came = repr(value[:40]) if isinstance(value, str) else _described(value)
        raise FieldError(came, " or ".join(map(repr, self.values)))


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def check(self, value: object) -> bool:
        """Return the value, or raise :class:`FieldError`."""
        if isinstance(value, bool):
            return value
        raise FieldError(_described(value), "true or false")


@dataclass(frozen=True)
class Whole:
    """A whole number between two others, both included."""

    least: int
    most: int

    def check(self, value: object) -> int:
        """Return the number, or raise :class:`FieldError`."""
        if type(value) is int and self.least <= value <= self.most:
            return value
        raise FieldError(_described(value), f"a whole number {_between(self.least, self.most)}")


@dataclass(frozen=True)
class Number:
    """A finite number between two others, both included."""

    least: float
    most: float

    def check(self, value: object) -> float:
        """Return the number, or raise :class:`FieldError`."""
        # The comparison is false for NaN and for infinities, and exact for whole numbers.
        if type(value) in (int, float) and self.least <= value <= self.most:  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        raise FieldError(_described(value), f"a number {_between(self.least, self.most)}")


@dataclass(frozen=True)
class Nullable:
    """A value of a kind, or null."""

    kind: Kind

    def check(self, value: object) -> Any:
        """Return the clean value or None, or raise :class:`FieldError`."""
        return None if value is None else self.kind.check(value)


@dataclass(frozen=True)
class Items:
    """A list of one kind."""

    each: Kind
    least: int = 0
    most: int = 1_000_000

    def check(self, value: object) -> list[Any]:
        """Return the items, or raise :class:`FieldError`."""
        if not isinstance(value, list | tuple) or not self.least <= len(value) <= self.most:
            size = (
                f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"
            )
            raise FieldError(_described(value), f"a list of {size}")
        clean = []
        for n, item in enumerate(value):
            try:
                clean.append(self.each.check(item))
            except FieldError as error:
                raise error.inside(str(n), item=True) from None
        return clean


@dataclass(frozen=True)
class Row:
    """A list of a fixed length, each item of a kind of its own; returned as a tuple."""

    kinds: tuple[Kind, ...]

    def check(self, value: object) -> tuple[Any, ...]:
        """Return the items, or raise :class:`FieldError`."""
        if not isinstance(value, list | tuple) or len(value) != len(self.kinds):
            raise FieldError(_described(value), f"a list of {len(self.kinds)}")
        clean = []
        for n, (kind, item) in enumerate(zip(self.kinds, value, strict=True)):
            try:
                clean.append(kind.check(item))
            except FieldError as error:
                raise error.inside(str(n), item=True) from None
        return tuple(clean)


@dataclass(frozen=True)
class Table:
    """An object whose keys are data, such as names of files."""

    key: Text
    each: Kind
    most: int = 1_000_000

    def check(self, value: object) -> dict[str, Any]:
        """Return the table, or raise :class:`FieldError`."""
        if not isinstance(value, Mapping) or len(value) > self.most:
            raise FieldError(_described(value), f"an object of at most {self.most:,} fields")
        clean = {}
        for n, (name, item) in enumerate(value.items()):
            try:
                self.key.check(name)
            except FieldError as error:
                raise error.inside(f"name {n + 1}", item=True) from None
            try:
                clean[name] = self.each.check(item)
            except FieldError as error:
                raise error.inside(
                    name if len(name) <= 40 else f"name {n + 1}", item=True
                ) from None
        return clean


@dataclass(frozen=True)
class Record:
    """An object of known fields.

    Attributes
    ----------
    fields : mapping
        Those that must be there.
    optional : mapping
        Those that may be there.
    closed : bool
        Whether another field is refused; otherwise it is left out of the result.
    """

    fields: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    closed: bool = False

    def check(self, value: object) -> dict[str, Any]:
        """Return the known fields, or raise :class:`FieldError`."""
        if not isinstance(value, Mapping):
            names = ", ".join(self.fields or self.optional)
            raise FieldError(_described(value), f"an object with {names}")
        clean: dict[str, Any] = {}
        name = ""
        try:
            for name, kind in self.fields.items():
                clean[name] = kind.check(value[name])
            for name, kind in self.optional.items():
                if name in value:
                    clean[name] = kind.check(value[name])
        except KeyError:
            raise FieldError("absent", "an object that has it", name) from None
        except FieldError as error:
            raise error.inside(name) from None
        if self.closed and len(clean) < len(value):
            known = ", ".join((*self.fields, *self.optional))
            raise FieldError(f"an object with {len(value) - len(clean)} more fields", known)
        return clean
