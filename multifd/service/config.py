"""relay.toml: the routes of a relay service.

Rules of this file: what is wrong is said in one line that names the file, the route and the key, and what was
expected. A file is taken whole or not at all.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from multifd.engine.config import RelayConfig
from multifd.errors import MultifdError, UsageError, about
from multifd.transport.access import Access
from multifd.transport.address import Uri
from multifd.transport.tls import Tls, TlsClient, TlsServer

_MOST_BYTES = 1 << 20
"""Of a file; a route takes a few hundred."""
_MOST_ROUTES = 256
"""Each has a thread and a listening socket."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""A route's; a label of metrics, a part of log lines, and a name that systemd's FileDescriptorName= takes."""
SYSTEMD = "systemd:"
_MODE = re.compile(r"0?[0-7]{3}")

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list[str]: "a list of texts",
    list[int]: "a list of whole numbers",
}
_KEYS: Mapping[str, Any] = {
    "listen": str,
    "to": str,
    "in": str,
    "out": str,
    "channels": int,
    "connect-timeout": float,
    "timeout": float,
    "max-bandwidth": int,
    "allow": list[str],
    "allow-uid": list[int],
    "socket-mode": str,
    "socket-group": str,
    "in-tls": dict,
    "out-tls": dict,
}
"""What a route may say, with the type of each value; `_relay_config`, `_access` and `_in_tls` hand them on."""
_BOTH_TLS: Mapping[str, Any] = {"creds": str, "verify-peer": bool, "handshake-timeout": float}
_TLS_KEYS: Mapping[str, Mapping[str, Any]] = {
    "in-tls": {**_BOTH_TLS, "authz": list[str]},
    "out-tls": {**_BOTH_TLS, "hostname": str, "username": str},
}
"""What the TLS of a side may say, as the command's options --in-tls-... and --out-tls-... are named; `Tls` has it."""
_NEEDED = ("listen", "to")
_SETTINGS = {"in_method": "in", "out_method": "out", "uids": "allow-uid"}
"""Arguments of the library's calls whose key here has another name."""


@dataclass(frozen=True)
class RouteSettings:
    """One route, checked."""

    name: str
    listen: Uri | str
    """Where sources connect: a URI, or the name of a socket that systemd hands over."""
    relay: RelayConfig
    access: Access
    """Who may connect there."""
    in_tls: TlsServer | None = None
    """For who connects; None: in clear. That towards the destination is in `relay`."""


def read(path: str | os.PathLike[str]) -> tuple[RouteSettings, ...]:
    """Read and check a file, with all that it names: methods are loaded, certificates and keys read.

    Args:
        path: of a TOML file of at most 1 MiB.

    Returns:
        Its routes, in the file's order; at least one.

    Raises:
        UsageError: the file cannot be read, or says something that cannot be meant.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as e:
        raise UsageError(f"cannot read {name}: {e.strerror}") from e
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{name}: longer than {_MOST_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{name}: not TOML: {e}") from e
    except RecursionError:
        raise UsageError(f"{name}: not TOML: nested too deep") from None
    try:
        return _routes(document)
    except UsageError as e:
        raise UsageError(f"{name}: {e}") from e


def _routes(document: Mapping[str, Any]) -> tuple[RouteSettings, ...]:
    _check_keys("", document, ("routes",))
    tables = document.get("routes")
    if not isinstance(tables, dict) or not tables:
        raise UsageError("no routes; expected a table [routes.NAME] for each")
    if len(tables) > _MOST_ROUTES:
        raise UsageError(f"{len(tables)} routes, expected at most {_MOST_ROUTES}")
    routes = tuple(_route(name, table) for name, table in tables.items())
    taken: dict[str, str] = {}
    for route in routes:
        address = str(route.listen)
        is_chosen_by_kernel = isinstance(route.listen, Uri) and not route.listen.path and not route.listen.port
        if not is_chosen_by_kernel and (other := taken.setdefault(address, route.name)) != route.name:
            raise UsageError(f"route {route.name!r}: listen: {address} is that of route {other!r}, too")
    return routes


def _route(name: str, table: Any) -> RouteSettings:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"route {name!r}: expected a name of letters, digits, '-', '_' and '.', at most 63, a letter or digit first"
        )
    where = f"route {name!r}: "
    if not isinstance(table, dict):
        raise UsageError(f"{where}expected a table [routes.{name}]")
    _check_keys(where, table, _KEYS)
    for key in _NEEDED:
        if key not in table:
            raise UsageError(f"{where}{key!r} is missing")
    values = {key: _value(f"{where}{key}: ", value, _KEYS[key]) for key, value in table.items()}
    with _said_of(where):
        listen, access = _listen(values["listen"]), _access(values)
        if isinstance(listen, Uri):
            access.check(listen)
        relay = _relay_config(values)
        if isinstance(listen, Uri):
            relay.check_listens_at(listen)
        return RouteSettings(name, listen, relay, access, _in_tls(values))


@contextlib.contextmanager
def _said_of(where: str) -> Iterator[None]:
    """What is wrong meanwhile is said with its place before it, and the key if it is about one."""
    try:
        yield
    except MultifdError as e:
        raise _told(where, e) from e


def of_route(name: str, error: MultifdError) -> UsageError:
    """An error of the library's calls, as one of a route's key."""
    return _told(f"route {name!r}: ", error)


def _told(where: str, error: MultifdError) -> UsageError:
    setting = error.setting.removeprefix("tls_")
    key = _SETTINGS.get(setting, setting.replace("_", "-"))
    return UsageError(f"{where}{f'{key}: ' if key else ''}{error}")


def _check_keys(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"{where}unknown key {key!r}; {hint}")


def _value(where: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, GenericAlias):
        is_right = isinstance(value, list) and all(_is_a(one, kind.__args__[0]) for one in value)
    else:
        is_right = _is_a(value, kind)
    if not is_right:
        raise UsageError(f"{where}got {value!r}, expected {_WORDS[kind]}")
    return value


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _listen(text: str) -> Uri | str:
    name = text.removeprefix(SYSTEMD)
    if name == text:
        uri = Uri.parse(text)
        uri.refuse_folder()
        if uri.fds:
            raise about(
                UsageError(f"a route may have to listen anew, {uri} is gone then; expected systemd:NAME"), "listen"
            )
        return uri
    if not name:
        raise UsageError(f"listen: got {text!r}, expected systemd:NAME, where NAME is the socket's FileDescriptorName=")
    return name


def _access(values: Mapping[str, Any]) -> Access:
    mode = values.get("socket-mode")
    if mode is not None and not _MODE.fullmatch(mode):
        raise about(UsageError(f"got {mode!r}, expected octal digits such as '0660'"), "socket_mode")
    return Access(
        tuple(values.get("allow", ())),
        tuple(values.get("allow-uid", ())),
        None if mode is None else int(mode, 8),
        values.get("socket-group"),
    )


def _tls(side: str, table: Mapping[str, Any]) -> Tls:
    where, keys = f"{side}: ", _TLS_KEYS[side]
    _check_keys(where, table, keys)
    if "creds" not in table:
        raise UsageError(f"{where}'creds' is missing")
    given = {key: _value(f"{where}{key}: ", value, keys[key]) for key, value in table.items()}
    with _said_of(where):
        return Tls(**{key.replace("-", "_"): value for key, value in given.items()})


def _in_tls(values: Mapping[str, Any]) -> TlsServer | None:
    if "in-tls" not in values:
        return None
    tls = _tls("in-tls", values["in-tls"])
    with _said_of("in-tls: "):
        return TlsServer(tls)


def _out_tls(values: Mapping[str, Any], to: Uri) -> TlsClient | None:
    if "out-tls" not in values:
        return None
    tls = _tls("out-tls", values["out-tls"])
    with _said_of("out-tls: "):
        return TlsClient(tls, to)


def _relay_config(values: Mapping[str, Any]) -> RelayConfig:
    to = Uri.parse(values["to"])
    return RelayConfig(
        to,
        values.get("in"),
        values.get("out", "none"),
        values.get("channels"),
        values.get("connect-timeout", 10.0),
        values.get("timeout", 60.0),
        values.get("max-bandwidth", 0),
        _out_tls(values, to),
    )
