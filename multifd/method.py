"""The contract between multifd and a method: all that a plugin imports.

Rules a change must respect:

* The engine owns sockets, headers, flags, SYNCs and zero pages; a method sees normal pages and
  payload bytes, nothing else.
* One instance serves all channels of a migration. What belongs to a channel lives in
  ``p.state``; hooks of different channels run at the same time, those of one channel never do.
* Source pages may be written while `MultifdMethods.send_prepare` runs (a live guest).
* `MultifdMethods.recv` trusts nothing it is given.

The group of entry points is ``multifd.methods``; its names are what users type.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_type_hints

from multifd.errors import CodecError, HookError, MethodUnavailable, MultifdError, OptionError
from multifd.pages import PACKET_BYTES, Buffer, Geometry, Memory, Pages

__all__ = [
    "API",
    "PACKET_BYTES",
    "Availability",
    "Buffer",
    "Capabilities",
    "CodecError",
    "Geometry",
    "HookError",
    "Memory",
    "MethodOptions",
    "MethodUnavailable",
    "MultifdMethods",
    "OptionError",
    "Pages",
    "RecvParams",
    "SendParams",
    "option",
]

API = 1
"""The version of this contract. A plugin says in ``api`` which one it was written for."""

MAX_IOV = 1000
"""The most buffers a packet's payload may have: IOV_MAX is 1024 on Linux, the header takes one."""


@dataclass(frozen=True)
class Capabilities:
    """What a method promises about its payloads; each default is the one that promises least."""

    streaming: bool = True
    """A payload may need the channel's earlier ones to decode."""
    page_independent: bool = False
    """Each page decodes without the others of its packet."""
    deterministic: bool = False
    """Equal pages after equal history give equal payloads."""
    verbatim: bool = False
    """The payload is the pages' bytes in order: the engine moves socket to pages itself."""
    max_payload: int = 1 << 20
    """Bytes that no payload exceeds. QEMU's own limit is 1 MiB (migration/multifd.h, 10.0)."""


@dataclass(frozen=True)
class Availability:
    """Whether a method can run here, with which engine, and why not with a better one."""

    ok: bool
    engine: str = ""
    reason: str = ""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a `MethodOptions` class: its default, one line of help, and what it allows.

    Args:
        default: the value if the user gives none.
        help: what it does.
        low, high: inclusive bounds of a number; None leaves that side open.
        choices: the only texts allowed.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


def _allowed(info: dataclasses.Field[Any], kind: type) -> str:
    """What a field accepts, in words."""
    choices, low, high = (info.metadata.get(k) for k in ("choices", "low", "high"))
    if choices:
        return "one of " + ", ".join(choices)
    if kind is bool:
        return "on or off"
    words = {int: "a whole number", float: "a number"}.get(kind, "text")
    if low is not None and high is not None:
        return f"{words} from {low} to {high}"
    if low is not None:
        return f"{words} of at least {low}"
    return f"{words} of at most {high}" if high is not None else words


@dataclass(frozen=True)
class MethodOptions:
    """Base of a method's options: a frozen dataclass of `option` fields (bool, int, float, str).

    Building one checks every value and raises `OptionError`, so a method never sees a bad one.
    """

    refused: ClassVar[Mapping[str, str]] = {}
    """Options that users will expect but this method cannot have, with the reason."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for info in dataclasses.fields(self):
            value, kind = getattr(self, info.name), kinds[info.name]
            choices, low, high = (info.metadata.get(k) for k in ("choices", "low", "high"))
            good = type(value) is kind or (kind is float and type(value) is int)
            good = good and (choices is None or value in choices)
            good = good and (low is None or value >= low) and (high is None or value <= high)
            if not good:
                raise OptionError(info.name, value, "expected " + _allowed(info, kind))

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Self:
        """Options from what a user typed: names to texts.

        Raises:
            OptionError: unknown name, or a text that its field does not allow.
        """
        kinds = get_type_hints(cls)
        infos = {info.name: info for info in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, text in texts.items():
            if name in cls.refused:
                raise OptionError(name, text, "not an option of this method: " + cls.refused[name])
            if name not in infos:
                known = ", ".join(infos) or "it has none"
                raise OptionError(name, text, f"no such option (options: {known})")
            kind = kinds[name]
            try:
                if kind is bool:
                    values[name] = {"on": True, "off": False}[text]
                else:
                    values[name] = kind(text)
            except (ValueError, KeyError):
                raise OptionError(name, text, "expected " + _allowed(infos[name], kind)) from None
        return cls(**values)

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One dict for each option: name, type, default, allowed (words), low, high, choices, help."""
        kinds = get_type_hints(cls)
        return [
            {
                "name": info.name,
                "type": kinds[info.name].__name__,
                "default": info.default,
                "allowed": _allowed(info, kinds[info.name]),
                "low": info.metadata.get("low"),
                "high": info.metadata.get("high"),
                "choices": info.metadata.get("choices"),
                "help": info.metadata.get("help", ""),
            }
            for info in dataclasses.fields(cls)
        ]


@dataclass(slots=True, eq=False)
class SendParams:
    """One channel's side of the contract at the sender; one object for the channel's whole life."""

    channel: int
    """0 .. channels-1."""
    geometry: Geometry
    abort: bytearray
    """One byte, readable from C: not zero once the migration is being torn down."""
    pages: Pages
    """The packet's normal pages, never empty in a hook; valid until the hook returns."""
    state: Any = None
    """The method's own, None before send_setup."""
    iov: list[Buffer] = field(default_factory=list)
    """Where send_prepare appends the payload (at most `MAX_IOV` buffers). The buffers belong to the
    method and stay untouched until the next hook of this channel."""
    counters: dict[str, int] = field(default_factory=dict)
    """Counters of the method, summed over channels into the migration's ``method_stats``."""


@dataclass(slots=True, eq=False)
class RecvParams:
    """One channel's side of the contract at the receiver; one object for the channel's whole life."""

    channel: int
    """0 .. channels-1."""
    geometry: Geometry
    abort: bytearray
    """One byte, readable from C: not zero once the migration is being torn down."""
    pages: Pages
    """Where the packet's pages go: writable, exactly as many as the sender had; valid until return."""
    state: Any = None
    """The method's own, None before recv_setup."""
    payload: memoryview = field(default_factory=lambda: memoryview(b""))
    """Read-only, exactly next_packet_size bytes, valid until return."""
    counters: dict[str, int] = field(default_factory=dict)
    """Counters of the method, summed over channels into the migration's ``method_stats``."""


class MultifdMethods(ABC):
    """A way to turn the pages of a packet into a payload and back.

    Built as ``cls(options)``; one instance serves all channels of one migration.

    Args:
        options: an instance of the class's `Options`; None for the defaults.
    """

    name: ClassVar[str]
    """What users type, and the name of the entry point; at most 31 ASCII characters."""
    api: ClassVar[int] = API
    """The plugin API it was written for. Write the number, not this default."""
    wire_code: ClassVar[int | None] = None
    """Value of the compression field on QEMU's wire (0, 2, 4, 8, 16, 32); methods that decode each
    other share one. None: a private payload format, found by name only."""
    wire_version: ClassVar[int] = 1
    """Version of the private payload format, 0..255; both ends must agree."""
    capabilities: ClassVar[Capabilities] = Capabilities()
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """Its options: ``zstd:level=3`` on the command line."""

    def __init__(self, options: MethodOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """What would run here with these options. Cheap, imports what it needs lazily, never raises."""
        return Availability(True)

    def send_setup(self, p: SendParams) -> None:  # noqa: B027 - most methods with no state need none
        """Make this channel's ``p.state``; called once, before any send_prepare."""

    @abstractmethod
    def send_prepare(self, p: SendParams) -> None:
        """Append the payload of ``p.pages`` to ``p.iov``, in wire order.

        A page that is written during the call may come out as anything of its length. A page that
        is not must decode exactly, in this and in every later packet of the channel.
        """

    def send_cleanup(self, p: SendParams) -> None:
        """Release ``p.state``. Also called after a setup that failed; a second call does nothing."""
        p.state = None

    def recv_setup(self, p: RecvParams) -> None:  # noqa: B027 - see send_setup
        """Make this channel's ``p.state``; called once, before any recv."""

    @abstractmethod
    def recv(self, p: RecvParams) -> None:
        """Fill ``p.pages`` from ``p.payload``.

        Raises:
            CodecError: the payload does not give exactly the pages' bytes. What was already
                written to the pages does not matter then.
        """

    def recv_cleanup(self, p: RecvParams) -> None:
        """Release ``p.state``. Also called after a setup that failed; a second call does nothing."""
        p.state = None


def run_hook(method: MultifdMethods, hook: str, p: SendParams | RecvParams) -> None:
    """Call a hook; what the contract does not allow it to raise becomes a HookError.

    Raises:
        MultifdError: passed through from the hook.
        HookError: it raised anything else.
    """
    try:
        getattr(method, hook)(p)
    except MultifdError:
        raise
    except Exception as e:
        raise HookError(f"method {method.name!r}: {hook} raised {e!r} on channel {p.channel}") from e
