"""The types of what is given on the command line.

A value that cannot be meant is refused here, in words, before anything is opened or connected.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from multifd.errors import UsageError

if TYPE_CHECKING:
    from click import ParamType
    from click.shell_completion import CompletionItem
else:

    class ParamType(click.ParamType):
        """click's; of 8.2 it has no parameter, which is for type checkers."""

        def __class_getitem__(cls, _kind):
            return cls


_Kind = TypeVar("_Kind")
_MOST_BYTES = (1 << 63) - 1
"""What a file's length, an offset and a rate fit into (off_t)."""
_LEAST_LINK = 8000
"""Bits each second: 1000 bytes, of which a page takes four seconds."""
_MOST_S = 1_000_000.0
"""Eleven days; poll(2) takes milliseconds in 31 bits, which is 24."""
_LONGEST = 4095  # bytes of a path, PATH_MAX in linux/limits.h


def _offer(value: str, kind: str) -> list[CompletionItem]:
    """What completion shows; kind file or dir: the shell looks for those that begin like it."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(value, type=kind)]


class Size(ParamType[int]):
    """Bytes, with a binary suffix: 512K, 100M, 2G, and ``/s`` if it is a rate.

    Args:
        least: the smallest size that can be meant.
        multiple_of: what every size must be a multiple of.
    """

    name = "size"

    def __init__(self, least: int = 0, multiple_of: int = 1) -> None:
        self._least, self._multiple_of = least, multiple_of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,30})(?:\.([0-9]{1,15}))?\s?([KMGT]?)(?:i?B)?(?:/s)?", value, re.IGNORECASE)
        if not match:
            self.fail(f"{value!r}: expected bytes such as 1048576, 512K, 100M or 2G", param, ctx)
        whole, fraction, suffix = match[1], match[2] or "", match[3]
        nbytes: int = int(whole + fraction) * 1024 ** " KMGT".index(suffix.upper() or " ") // 10 ** len(fraction)
        if not self._least <= nbytes <= _MOST_BYTES:
            self.fail(f"{value!r}: expected {self._least} to {_MOST_BYTES} bytes", param, ctx)
        if nbytes % self._multiple_of:
            self.fail(f"{value!r}: expected a multiple of {self._multiple_of} bytes", param, ctx)
        return nbytes


class Link(ParamType[int]):
    """A link's rate in bits each second, decimal as networks count: 1Gbit, 2.5Gbit, 400Mbit."""

    name = "link"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,9})(?:\.([0-9]{1,6}))?\s?([KMGT])bit(?:/s)?", value, re.IGNORECASE)
        bits = 0
        if match:
            whole, fraction, suffix = match[1], match[2] or "", match[3]
            bits = int(whole + fraction) * 1000 ** " KMGT".index(suffix.upper()) // 10 ** len(fraction)
        if not _LEAST_LINK <= bits <= _MOST_BYTES:
            self.fail(f"{value!r}: expected bits a second such as 10Gbit, 2.5Gbit or 400Mbit", param, ctx)
        return bits


class Whole(ParamType[int]):
    """A whole number.

    Args:
        least, most: the range, both included.
    """

    name = "whole number"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """See `click.ParamType.get_metavar`."""
        return f"{self._least}..{self._most}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if re.fullmatch(r"[0-9]{1,18}", value, re.ASCII) and self._least <= int(value) <= self._most:
            return int(value)
        return self.fail(f"{value!r}: expected a whole number from {self._least} to {self._most}", param, ctx)


class Seconds(ParamType[float]):
    """A time that a wait can have: above 0, finite, at most 1000000 s."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= _MOST_S:
            self.fail(f"{value!r}: expected seconds, above 0 and at most {_MOST_S:.0f}", param, ctx)
        return seconds


class _Place(ParamType[_Kind]):
    """What begins like a path, for which the shell offers files."""

    _offered = "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _offer(incomplete, self._offered)


class FilePath(_Place[Path]):
    """A path that the system can have at all: not empty, without NUL, at most 4095 bytes, no folder's."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = _path_text(self, value, param, ctx)
        if os.path.isdir(text):
            self.fail(f"{text!r}: is a folder, expected a file", param, ctx)
        return Path(text)


class StoredPlace(_Place["Path | str"]):
    """A file's path, or ``dir:PATH``, a folder of stored streams, as it was given."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        text = str(value)
        if not text.startswith("dir:"):
            return FilePath().convert(value, param, ctx)
        _path_text(self, text.removeprefix("dir:"), param, ctx)
        return text


class Mode(ParamType[int]):
    """Permissions of a file as chmod takes them: 0660."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not re.fullmatch(r"0?[0-7]{3}", value, re.ASCII):
            self.fail(f"{value!r}: expected an octal mode of three digits, such as 0660", param, ctx)
        return int(value, 8)


class Uid(ParamType[int]):
    """A user, by number: 32 bits, whose last value is nobody's."""

    name = "uid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", value, re.ASCII) or int(value) >= (1 << 32) - 1:
            self.fail(f"{value!r}: expected a user's number, 0 to {(1 << 32) - 2}", param, ctx)
        return int(value)


class FolderPath(_Place[Path]):
    """A folder's path that the system can have at all; nothing else may be there, perhaps nothing is."""

    name = "folder"
    _offered = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = _path_text(self, value, param, ctx)
        if os.path.lexists(text) and not os.path.isdir(text):
            self.fail(f"{text!r}: is no folder", param, ctx)
        return Path(text)


def _path_text(kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
    """What was given, if it can be a path: not empty, without NUL, at most 4095 bytes."""
    text = str(value)
    try:
        length = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= _LONGEST or "\0" in text:
        kind.fail(f"{text[:80]!r}: expected a path of 1 to {_LONGEST} bytes", param, ctx)
    return text


class SourcePlace(_Place[str]):
    """A file, a URL or ``dir:PATH``, as it was given; whether there is anything is seen where it lies."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        FilePath().convert(value, param, ctx)
        return str(value)


class MethodSpec(ParamType[str]):
    """A method's name with options, ``zstd:level=3``; whether there is such a method is seen later."""

    name = "method"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from multifd.registry import installed

        return [item for name in installed() if name.startswith(incomplete) for item in _offer(name, "plain")]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from multifd.registry import parse_spec

        try:
            name, _ = parse_spec(value)
        except UsageError as e:
            self.fail(str(e), param, ctx)
        if not name:
            self.fail("the empty name is no method's", param, ctx)
        return str(value)
