"""Names to methods: entry points of group ``multifd.methods``, the only user of stevedore.

Listing imports no plugin; a method's module is imported when it is named, or when all are
described. A plugin that cannot be used never hides another one.

What is done here about stevedore 5.10 (each pinned by a test in test_registry.py): its disk cache
misses what was installed in the last two minutes and drops the distribution, so names are looked up
again with importlib.metadata; it sees only neighbouring duplicates, so they are counted here; an
AssertionError at a plugin's import passes its callback, so it is caught here.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from multifd.errors import (
    HookError,
    MethodError,
    MethodIncompatible,
    MethodNotFound,
    MethodUnavailable,
    OptionError,
    UsageError,
)
from multifd.method import API, Availability, MethodOptions, MultifdMethods

GROUP = "multifd.methods"


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


def installed() -> list[str]:
    """The names of all installed methods, sorted; nothing is imported."""
    return _names(_entry_points())


def _names(entry_points: list[EntryPoint]) -> list[str]:
    return sorted({ep.name for ep in entry_points})


def find(name: str) -> type[MultifdMethods]:
    """The class of a method; its module is imported now.

    Raises:
        MethodNotFound: nobody provides the name.
        MethodUnavailable: its module cannot be imported.
        MethodIncompatible: two distributions provide it, or it is not a method of this API.
    """
    return _find(name, _entry_points())


def _find(name: str, entry_points: list[EntryPoint]) -> type[MultifdMethods]:
    candidates = [ep for ep in entry_points if ep.name == name]
    if not candidates:
        names = _names(entry_points)
        raise MethodNotFound(name, names, difflib.get_close_matches(name, names))
    if len(candidates) > 1:
        owners = ", ".join(f"{ep.value} of {_owner(ep)}" for ep in candidates)
        raise MethodIncompatible(
            f"method {name!r} is provided {len(candidates)} times: {owners}; uninstall all but one"
        )
    return _check(name, candidates[0], _load(candidates[0]))


def load_method(spec: str) -> MultifdMethods:
    """A method ready for one migration, from ``NAME`` or ``NAME:key=value,key=value``.

    Raises:
        MethodError: as `find`; OptionError for the options; MethodUnavailable if it cannot run here.
        UsageError: the text has another form.
    """
    name, texts = parse_spec(spec)
    cls = find(name)
    try:
        options = _guarded(f"method {name!r}: its options", lambda: cls.Options.parse(texts))
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


def methods_of_code(wire_code: int) -> list[str]:
    """The names of the loadable methods with this code on the wire, multifd's own first."""
    found = []
    for info in describe():
        if info.status == "ok" and info.wire_code == wire_code:
            found.append(info)
    return [info.name for info in sorted(found, key=lambda i: (i.distribution != "multifd", i.name))]


def describe() -> list[MethodInfo]:
    """All installed methods, sorted by name; one that does not load says why."""
    entry_points = _entry_points()  # once: it reads the metadata of every distribution, 4 ms for a few
    return [_describe(name, entry_points) for name in _names(entry_points)]


def _describe(name: str, entry_points: list[EntryPoint]) -> MethodInfo:
    candidates = [ep for ep in entry_points if ep.name == name]
    distribution, version = _distribution(candidates[0])
    try:
        cls = _find(name, entry_points)
        defaults, options = _guarded(f"method {name!r}: its options", lambda: (cls.Options(), cls.Options.describe()))
        available, code = _availability(cls, defaults), cls.wire_code
    except MethodError as e:
        return MethodInfo(name, "unavailable", "", str(e), distribution, version, None, [])
    status = "ok" if available.ok else "unavailable"
    return MethodInfo(name, status, available.engine, available.reason, distribution, version, code, options)


def _entry_points() -> list[EntryPoint]:
    """All entry points of the group: stevedore's, and what its cache does not know yet."""
    from stevedore import ExtensionManager

    # make_test_instance: the only way to list through stevedore without importing every plugin.
    listed = ExtensionManager.make_test_instance([], namespace=GROUP).list_entry_points()
    fresh = list(importlib.metadata.entry_points(group=GROUP))
    # By name: what the cache says of a name that is known may be what an upgrade has replaced.
    seen = {ep.name for ep in fresh}
    return fresh + [ep for ep in listed if ep.name not in seen]


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    """Run plugin code that may raise anything at all; only Ctrl-C passes."""
    try:
        return call()
    except (MethodError, KeyboardInterrupt):
        raise
    except BaseException as e:
        raise MethodUnavailable(f"{what}: {type(e).__name__}: {e}") from e


def _load(ep: EntryPoint) -> Any:
    return _guarded(f"method {ep.name!r}: {ep.value} of {_owner(ep)} does not load", ep.load)


def _check(name: str, ep: EntryPoint, cls: Any) -> type[MultifdMethods]:
    where = f"method {name!r}: {ep.value} of {_owner(ep)}"
    if not (isinstance(cls, type) and issubclass(cls, MultifdMethods)):
        raise MethodIncompatible(f"{where} is {cls!r}, expected a subclass of multifd.method.MultifdMethods")
    if cls.api != API:
        raise MethodIncompatible(f"{where} is for plugin API {cls.api}, this multifd has API {API}")
    if getattr(cls, "name", None) != name:
        raise MethodIncompatible(f"{where} calls itself {getattr(cls, 'name', None)!r}")
    if not (name.isascii() and 0 < len(name) <= 31):
        raise MethodIncompatible(f"{where}: a name has 1 to 31 ASCII characters")
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, MethodOptions)):
        raise MethodIncompatible(f"{where}: its Options is {cls.Options!r}, expected a subclass of MethodOptions")
    if cls.__abstractmethods__:
        raise MethodIncompatible(f"{where} lacks {', '.join(sorted(cls.__abstractmethods__))}")
    return cls


def _availability(cls: type[MultifdMethods], options: Any) -> Availability:
    available = _guarded(f"method {cls.name!r}: availability failed", lambda: cls.availability(options))
    if not isinstance(available, Availability):
        raise MethodIncompatible(f"method {cls.name!r}: availability returned {available!r}")
    return available


def _distribution(ep: EntryPoint) -> tuple[str, str]:
    """Name and version of who provides it; stevedore's entry points have lost theirs."""
    if ep.dist is not None:
        return ep.dist.name, ep.dist.version
    for known in importlib.metadata.entry_points(group=GROUP):
        if (known.name, known.value) == (ep.name, ep.value) and known.dist is not None:
            return known.dist.name, known.dist.version
    return "", ""


def _owner(ep: EntryPoint) -> str:
    return " ".join(_distribution(ep)).strip() or "an unknown distribution"
