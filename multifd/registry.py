"""Names to methods: entry points of group ``multifd.methods``, listed and loaded by stevedore.

Listing imports no plugin; a method's module is imported when it is named, or when all are described. A plugin that
cannot be used never hides another one. `_Plugins` is the only user of stevedore and guards its traps.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from stevedore import NamedExtensionManager

from multifd.errors import (
    HookError,
    MethodError,
    MethodIncompatible,
    MethodNotFound,
    MethodUnavailable,
    OptionError,
    UsageError,
)
from multifd.method import API, OLDEST_API, Availability, Capabilities, MethodOptions, MultifdMethods

_LOG = logging.getLogger(__name__)
GROUP = "multifd.methods"

if TYPE_CHECKING:
    _Manager = NamedExtensionManager[Any]
else:  # stevedore 5.2 has no parameters there
    _Manager = NamedExtensionManager


@dataclass(frozen=True)
class MethodInfo:
    """One installed method, as ``multifd methods`` shows it."""

    name: str
    status: str
    """ok or unavailable."""
    engine: str
    reason: str
    """Why it, or a better engine, is not available; may be empty."""
    distribution: str
    version: str
    wire_code: int | None
    """None: private, or not known because the plugin does not load."""
    options: list[dict[str, Any]]
    promises: list[str] = field(default_factory=list)
    """The fields of `multifd.method.Capabilities` that are promised, sorted; ``stateless`` is ``streaming=False``."""


class _Plugins(_Manager):
    """stevedore's manager for our group, with its traps guarded; each is pinned by a test in test_registry.py.

    * Its list comes from a cache on disk that misses what was installed in the last two minutes and has lost the
      distributions: `entry_points` asks importlib.metadata instead.
    * Of two plugins with one name it loads both and keeps one: `_find` counts them before it loads any.
    * A manager imports every plugin of its group unless it is told names: this one is told one.
    * It logs and drops what does not load, and lets an AssertionError or SystemExit through: `fail` raises instead, and
      `_guarded` takes all of them.

    Args:
        entry_point: the plugin to import.
    """

    def __init__(self, entry_point: EntryPoint) -> None:
        self._entry_point = entry_point
        super().__init__(GROUP, [entry_point.name], on_load_failure_callback=self.fail)

    @staticmethod
    def fail(_manager: Any, _entry_point: EntryPoint, error: BaseException) -> None:
        """Pass the error of a plugin's import on to who asked for it."""
        raise error

    def list_entry_points(self) -> list[EntryPoint]:
        """The one that was asked for: to look through all distributions again takes milliseconds."""
        return [self._entry_point]


def entry_points() -> list[EntryPoint]:
    """All entry points of the group as they are now, with duplicates; nothing is imported."""
    return list(_entry_points_in(tuple(map(_state, sys.path))))


def _state(folder: str) -> tuple[str, int]:
    """What changes when a distribution is installed in a folder, or removed: its entries, and so its time."""
    try:
        return folder, os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return folder, 0


@functools.lru_cache(maxsize=1)
def _entry_points_in(_folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """To read every distribution's takes 4 ms with a hundred of them, on the 2 cores of docs/performance.md."""
    try:
        return tuple(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # whatever a damaged file of one of them makes importlib raise
        return tuple(_readable_entry_points())


def _readable_entry_points() -> Iterator[EntryPoint]:
    """Those of every distribution but the ones whose file with them is damaged, which are named."""
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name, _ = _name_and_version(distribution)
        try:
            found = distribution.entry_points.select(group=GROUP)
        except Exception as e:
            _LOG.warning(
                "%s: its entry points cannot be read, so its methods, if it has any, are missing: %s: %s",
                name or "a distribution", type(e).__name__, e,
            )  # fmt: skip
            continue
        # Of two in the path the first counts, under whatever spelling, as for importlib.
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in seen:
            yield from found
        seen.update({key} - {""})


def installed() -> list[str]:
    """The names of all installed methods, sorted; nothing is imported."""
    return sorted({ep.name for ep in entry_points()})


def find(name: str, among: Sequence[EntryPoint] | None = None) -> type[MultifdMethods]:
    """The class of a method; its module is imported now.

    Args:
        name: the method's.
        among: what `entry_points` gave; None looks now.

    Raises:
        MethodNotFound: nobody provides the name.
        MethodUnavailable: its module cannot be imported.
        MethodIncompatible: two distributions provide it, or it is not a method of this API.
    """
    return _find(name, entry_points() if among is None else among)


def _find(name: str, entry_points: Sequence[EntryPoint]) -> type[MultifdMethods]:
    candidates = [ep for ep in entry_points if ep.name == name]
    if not candidates:
        names = sorted({ep.name for ep in entry_points})
        raise MethodNotFound(name, names, difflib.get_close_matches(name, names))
    if len(candidates) > 1:
        owners = ", ".join(f"{ep.value} of {_owner(ep)}" for ep in candidates)
        raise MethodIncompatible(
            f"method {name!r} is provided {len(candidates)} times: {owners}; uninstall all but one"
        )
    return _check(name, candidates[0], _load(candidates[0]))


def load_method(spec: str, among: Sequence[EntryPoint] | None = None) -> MultifdMethods:
    """A method ready for one migration, from ``NAME`` or ``NAME:key=value,key=value``.

    Args:
        spec: the text.
        among: what `entry_points` gave; None looks now.

    Raises:
        MethodError: as `find`; OptionError for the options; MethodUnavailable if it cannot run here.
        UsageError: the text has another form.
    """
    name, texts = parse_spec(spec)
    cls = find(name, among)
    try:
        options = _guarded(lambda: f"method {name!r}: its options", lambda: cls.Options.parse(texts))
    except OptionError as e:
        e.method = name
        raise
    available = _availability(cls, options)
    if not available.ok:
        raise MethodUnavailable(f"method {name!r} cannot run here: {available.reason}")
    try:
        return cls(options)
    except MethodError:
        raise
    except Exception as e:
        raise HookError(f"method {name!r}: building it raised {e!r}") from e


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """``zstd:level=3`` as ("zstd", {"level": "3"}).

    Raises:
        UsageError: another form, or an option given twice.
    """
    name, colon, rest = spec.partition(":")
    texts: dict[str, str] = {}
    for item in rest.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if not (name and key and equals) or key in texts:
            raise UsageError(f"method {spec!r}: expected NAME or NAME:key=value,key=value, each key once")
        texts[key] = value
    return name, texts


def methods_of_code(wire_code: int) -> Iterator[str]:
    """The names of the methods that can run here with this code on the wire, multifd's own first.

    Each is loaded only when it is its turn: who takes the first does not wait for the others.
    """
    found = entry_points()
    own = {ep.name for ep in found if _distribution(ep)[0] == "multifd"}
    for name in sorted({ep.name for ep in found}, key=lambda name: (name not in own, name)):
        info = _describe(name, found)
        if info.status == "ok" and info.wire_code == wire_code:
            yield name


def describe(among: Sequence[EntryPoint] | None = None) -> list[MethodInfo]:
    """All installed methods, sorted by name; one that does not load says why.

    Args:
        among: what `entry_points` gave; None looks now.
    """
    found = entry_points() if among is None else among
    return [_describe(name, found) for name in sorted({ep.name for ep in found})]


def _describe(name: str, entry_points: Sequence[EntryPoint]) -> MethodInfo:
    candidates = [ep for ep in entry_points if ep.name == name]
    distribution, version = _distribution(candidates[0])
    try:
        cls = _find(name, entry_points)
        defaults, options = _guarded(
            lambda: f"method {name!r}: its options", lambda: (cls.Options(), cls.Options.describe())
        )
        available, code = _availability(cls, defaults), cls.wire_code
    except MethodError as e:
        return MethodInfo(name, "unavailable", "", str(e), distribution, version, None, [])
    status = "ok" if available.ok else "unavailable"
    return MethodInfo(
        name, status, available.engine, available.reason, distribution, version, code, options, _promises(cls)
    )


def _promises(cls: type[MultifdMethods]) -> list[str]:
    c = cls.capabilities
    held = {
        "stateless": not c.streaming,
        "page_independent": c.page_independent,
        "deterministic": c.deterministic,
        "verbatim": c.verbatim,
    }
    return sorted(name for name, holds in held.items() if holds)


def _guarded(what: Callable[[], str], call: Callable[[], Any]) -> Any:
    """Run plugin code that may raise anything at all; only Ctrl-C passes. `what` is asked for words on a failure."""
    try:
        return call()
    except (MethodError, KeyboardInterrupt):
        raise
    except BaseException as e:
        raise MethodUnavailable(f"{what()}: {type(e).__name__}: {e}") from e


def _load(ep: EntryPoint) -> Any:
    return _guarded(lambda: f"{_place(ep)} does not load", lambda: _Plugins(ep)[ep.name].plugin)


def _check(name: str, ep: EntryPoint, cls: Any) -> type[MultifdMethods]:
    if not (isinstance(cls, type) and issubclass(cls, MultifdMethods)):
        raise MethodIncompatible(f"{_place(ep)} is {cls!r}, expected a subclass of multifd.method.MultifdMethods")
    api = getattr(cls, "api", None)
    if type(api) is not int:
        raise MethodIncompatible(
            f"{_place(ep)} does not say which plugin API it is for: api is {api!r}, write api = {API}"
        )
    if not OLDEST_API <= api <= API:
        taken = f"API {API}" if OLDEST_API == API else f"APIs {OLDEST_API} to {API}"
        raise MethodIncompatible(f"{_place(ep)} is for plugin API {api}, this multifd has {taken}")
    if getattr(cls, "name", None) != name:
        raise MethodIncompatible(f"{_place(ep)} calls itself {getattr(cls, 'name', None)!r}")
    if not (name.isascii() and 0 < len(name) <= 31):
        raise MethodIncompatible(f"{_place(ep)}: a name has 1 to 31 ASCII characters")
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, MethodOptions)):
        raise MethodIncompatible(f"{_place(ep)}: its Options is {cls.Options!r}, expected a subclass of MethodOptions")
    if not isinstance(cls.capabilities, Capabilities):
        raise MethodIncompatible(f"{_place(ep)}: its capabilities are {cls.capabilities!r}, expected a Capabilities")
    if cls.__abstractmethods__:
        raise MethodIncompatible(f"{_place(ep)} lacks {', '.join(sorted(cls.__abstractmethods__))}")
    return cls


def _availability(cls: type[MultifdMethods], options: Any) -> Availability:
    available = _guarded(lambda: f"method {cls.name!r}: availability failed", lambda: cls.availability(options))
    if not isinstance(available, Availability):
        raise MethodIncompatible(f"method {cls.name!r}: availability returned {available!r}")
    return available


def _distribution(ep: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that provides it."""
    return ("", "") if ep.dist is None else _name_and_version(ep.dist)


@functools.lru_cache(maxsize=64)
def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Each is looked up in the distribution's file, which is parsed anew every time."""
    if not all(field in distribution.metadata for field in ("Name", "Version")):  # pip is at work on it
        return "", ""
    return distribution.name, distribution.version


def _place(ep: EntryPoint) -> str:
    """Where a method comes from, for an error's words: to find it out reads a file, which takes a millisecond."""
    return f"method {ep.name!r}: {ep.value} of {_owner(ep)}"


def _owner(ep: EntryPoint) -> str:
    return " ".join(_distribution(ep)).strip() or "an unknown distribution"
