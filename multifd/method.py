"""The contract between multifd and a method: all that a plugin imports, and all that its author needs to read.

A method is a subclass of `MultifdMethods`, named by an entry point of the group ``multifd.methods``; the name of the
entry point is what users type. The engine owns sockets, headers, flags, SYNCs and zero pages; a method sees normal
pages and payload bytes, nothing else.

The rules. Each names the tests of the conformance kit (``pytest --pyargs multifd.testing``) that prove it:

* State. One instance serves all channels of a migration, and nothing that changes hangs on it. What belongs to a
  channel lives in ``p.state``. (test_channels_interleaved, test_any_history)
* Threads. All hooks of one channel at one end run in one thread, one after the other. Hooks of different channels run
  at the same time, in threads of which none need be the process's first. (test_channels_in_threads,
  test_migration_after_migration)
* Pages. A packet has 1 to ``geometry.page_count`` pages, anywhere in memory and in any order. Every buffer that a hook
  is given is contiguous bytes. A source page may be read-only. `send_prepare` never writes to a page; `recv` fills
  all of its pages and writes and reads nothing beside them. (test_round_trip, test_sources, test_source_unchanged,
  test_guard_pages)
* Ownership. Pages, payload and what `Pages.gather` and `Pages.scratch` give are the engine's again when the hook
  returns or raises; nothing refers to them afterwards but what stands in ``p.iov``. (test_pages_not_kept,
  test_errors_release_memory)
* iov. The engine clears ``p.iov``, `send_prepare` appends to it. Each buffer is contiguous bytes and stays as it is
  until the next hook of this channel. Views of the packet's pages may stand there, and so may what `gather` gave: the
  engine keeps both until then. (test_iov_untouched, test_payload_bound)
* Payload. It has at least one byte, at most ``max_payload(geometry)``, in at most `MAX_IOV` buffers, and no byte in it
  comes from memory that the packet or the channel's history did not give. (test_payload_bound, test_stale_bytes)
* Live pages. The guest may write to its pages while `send_prepare` runs. Such a page may come out as anything of its
  length. A page that is not written meanwhile decodes exactly, in this and in every later packet. (test_live_pages)
* Distrust. `recv` raises CodecError or gives exactly the pages' bytes, whatever the payload, in bounded memory and
  time. (test_hostile_payloads)
* Two hosts. The ends are two processes, and each has its own options: an option never travels, so `recv` decodes with
  its own defaults whatever the sender's options were. (test_receiver_defaults, test_other_process)
* Abort. A hook that can wait polls ``p.abort`` and raises `Aborted` once it is not zero. It waits for a device that
  does not answer for at most ``p.timeout_s``, and then goes on without it or raises HookError. (test_abort)
* Errors. Set-up raises `MethodUnavailable` if the channel cannot be served here; `recv` raises `CodecError`. Whatever
  else leaves a hook is taken for the plugin's bug: the engine raises `HookError` in its place.
  (test_setup_fails_half_way, test_hostile_payloads)
* Cleanup. It releases everything: threads, processes, files, maps. It also runs after a set-up that failed, without
  one, and a second time. (test_cleanup_twice, test_setup_fails_half_way, test_no_growth, test_leaves_nothing)
* Options. They are checked, frozen, and never changed. (test_options, test_options_unchanged)
* Promises. What `Capabilities` claims is true. (test_capabilities_are_possible, test_stateless_claim,
  test_page_independent_claim, test_deterministic_claim, test_verbatim_claim)
* Wire code. A method that has QEMU's code speaks QEMU's format. (test_golden_vectors, test_reference_decoder,
  test_shared_wire_code)
* Native hooks. What `native_send` and `native_recv` offer gives what the hooks in Python give, in any mixture of
  packets: the same payloads if they are deterministic, the same pages, exceptions and counters. It touches nothing but
  its state and what it is given, and that only until it returns. (test_native_payloads, test_native_mixtures,
  test_native_refusals, test_native_guards, test_native_live_pages, test_native_channels_in_threads,
  test_native_abort)
* Itself. Name, api, code and availability are as described here. (test_identity, test_availability)
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from multifd.errors import Aborted, CodecError, HookError, MethodUnavailable, MultifdError, OptionError
from multifd.options import MethodOptions, option
from multifd.pages import PACKET_BYTES, Buffer, Geometry, Memory, Pages

__all__ = [
    "API",
    "MAX_IOV",
    "MAX_PAYLOAD",
    "OLDEST_API",
    "PACKET_BYTES",
    "Aborted",
    "Availability",
    "Buffer",
    "Capabilities",
    "CodecError",
    "Geometry",
    "HookError",
    "LinkUse",
    "Memory",
    "MethodOptions",
    "MethodUnavailable",
    "MultifdMethods",
    "NativeHook",
    "OptionError",
    "Pages",
    "RecvParams",
    "SendParams",
    "option",
]

API = 1
"""The version of this contract. A plugin writes in ``api`` which one it was written for.

It counts up when a plugin that keeps the old rules would break: a hook, field or promise goes or changes its meaning.
It stays for what an old plugin need not know: a new field of `SendParams` or `RecvParams` with a default, a new
attribute or hook of `MultifdMethods` that does nothing by default, a new promise of `Capabilities` that is not made by
default, a new name in this module.
"""

OLDEST_API = 1
"""The registry takes plugins from this version to `API`."""

MAX_IOV = 1000
"""The most buffers a packet's payload may have: IOV_MAX is 1024 on Linux, the header takes one."""

MAX_PAYLOAD = 2 * PACKET_BYTES
"""Bytes that no payload exceeds: 1 MiB, twice MULTIFD_PACKET_SIZE, as in QEMU (migration/multifd.h, 10.0)."""


@dataclass(frozen=True)
class Capabilities:
    """What a method promises about its payloads; each default is the one that promises least.

    The engine acts on `verbatim`. The others are proved by the kit, which knows by them what it may demand, and are
    shown to users by ``multifd methods --json``.
    """

    streaming: bool = True
    """A payload may need the channel's earlier ones to decode; False: each decodes alone, in any order."""
    page_independent: bool = False
    """No page is encoded by another of its packet, so damage to one stays in it."""
    deterministic: bool = False
    """Equal pages after equal history give equal payloads, in every process."""
    verbatim: bool = False
    """The payload is the pages' bytes in order: the engine moves socket to pages itself and does not call `recv`."""


@dataclass(frozen=True)
class Availability:
    """Whether a method can run here, with which engine, and why not with a better one."""

    ok: bool
    engine: str = ""
    reason: str = ""


def _nothing() -> None:
    """Nothing to settle."""


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What the kernel has counted of a connection's way out.

    Args:
        delivery_rate: bytes a second that the other end lately acknowledged; 0 if that is not known, as under a limit.
            What went through somebody's buffers looks faster than the link behind them.
        busy_s: seconds so far in which bytes were on their way, or waited for their turn, or for the migration's limit.
        receiver_s: of these, in which the receiver had no room for more. Both go up in steps of some milliseconds.
    """

    delivery_rate: float
    busy_s: float
    receiver_s: float


def _unknown() -> LinkUse | None:
    """Nobody counts."""
    return None


@dataclass(slots=True, eq=False)
class SendParams:
    """One channel's side of the contract at the sender; one object for the channel's whole life."""

    channel: int
    """0 .. channels-1."""
    geometry: Geometry
    abort: bytearray
    """One byte, readable from C: not zero once the migration is being torn down. A hook that waits polls it and
    raises `Aborted`."""
    pages: Pages
    """The packet's normal pages, never empty in send_prepare; valid until the hook returns, or, as views in `iov`,
    until the next hook of this channel."""
    state: Any = None
    """The method's own, None before send_setup."""
    iov: list[Buffer] = field(default_factory=list)
    """Where send_prepare appends the payload: 1 to `MAX_IOV` contiguous buffers, at least one byte together. The engine
    clears it before the hook. The buffers are the method's, or views of the packet's pages, and stay untouched until
    the next hook of this channel."""
    counters: dict[str, int] = field(default_factory=dict)
    """Counters of the method, summed over channels into the migration's ``method_stats``. Those that are named
    ``METHOD.WORD_packets`` say how many packets went by what, and progress shows it."""
    timeout_s: float = 60.0
    """Seconds that a hook may wait for a device that does not answer; the migration's ``timeout``."""
    link_use: Callable[[], LinkUse | None] = _unknown
    """What the kernel has counted of the way to the other end; None: it does not say. It takes 2 µs."""


@dataclass(slots=True, eq=False)
class RecvParams:
    """One channel's side of the contract at the receiver; one object for the channel's whole life."""

    channel: int
    """0 .. channels-1."""
    geometry: Geometry
    abort: bytearray
    """One byte, readable from C: not zero once the migration is being torn down. A hook that waits polls it and
    raises `Aborted`."""
    pages: Pages
    """Where the packet's pages go: writable, exactly as many as the sender had; valid until return."""
    state: Any = None
    """The method's own, None before recv_setup."""
    payload: memoryview = field(default_factory=lambda: memoryview(b""))
    """Read-only, contiguous, as many bytes as the peer says it has, at most ``max_payload``; valid until the
    hook returns. A peer that breaks the protocol may send none."""
    counters: dict[str, int] = field(default_factory=dict)
    """Counters of the method, summed over channels into the migration's ``method_stats``."""
    timeout_s: float = 60.0
    """Seconds that a hook may wait for a device that does not answer; the migration's ``timeout``."""


@dataclass(frozen=True, slots=True)
class NativeHook:
    """A hook in native code, which the packet pump calls instead of `send_prepare` or `recv` (multifd/pump/native.h).

    Args:
        function: address of a ``multifd_native_send`` or ``multifd_native_recv``.
        state: address of what it gets as ``state``.
        explain: the exception for a negative result other than ``MULTIFD_NATIVE_DECLINED``: for a receiver's hook
            what `recv` would raise for the same payload. Called in the channel's thread.
        settle: called in the channel's thread after each call of the pump that used the hook: the place to count in
            ``p.counters``, and to change what ``state`` says for the packets to come.
        gather, scatter: addresses of a ``multifd_native_gather``, which a sender's packets go by first, and of a
            ``multifd_native_scatter``, which a receiver's do; 0: there is none.
        keep: what must not be freed as long as the hook may be called.
    """

    function: int
    state: int
    explain: Callable[[int], Exception]
    settle: Callable[[], None] = _nothing
    gather: int = 0
    scatter: int = 0
    keep: Any = None


class MultifdMethods(ABC):
    """A way to turn the pages of a packet into a payload and back.

    Built as ``cls(options)``; one instance serves all channels of one migration.

    Args:
        options: an instance of the class's `Options`; None for the defaults.
    """

    name: ClassVar[str]
    """What users type, and the name of the entry point; at most 31 ASCII characters."""
    api: ClassVar[int]
    """The version of this contract it was written for, as a number: ``api = 1``. It has no default, so that a plugin
    that is older than the multifd beside it is never taken for a new one."""
    wire_code: ClassVar[int | None] = None
    """Value of the compression field on QEMU's wire (0, 2, 4, 8, 16, 32); methods that decode each
    other share one. None: a private payload format, found by name only."""
    wire_version: ClassVar[int] = 1
    """Version of the private payload format, 0..255; both ends must agree."""
    capabilities: Capabilities = Capabilities()
    """The class's for its default options; an instance whose options allow less sets its own when it is built."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """Its options: ``zstd:level=3`` on the command line. Each end has its own: the receiver builds the method that the
    sender names with what its own command line says, or with the defaults."""

    def __init__(self, options: MethodOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """What would run here with these options. Cheap, imports what it needs lazily, never raises."""
        return Availability(True)

    def max_payload(self, geometry: Geometry) -> int:
        """Bytes that no payload of this geometry exceeds, also of pages that do not compress.

        The receiver allocates as much for each channel and refuses a packet that says more; so it depends on the
        geometry, not on options that the two ends may have set differently. From 1 to `MAX_PAYLOAD`.
        """
        return MAX_PAYLOAD

    def send_setup(self, p: SendParams) -> None:  # noqa: B027 - most methods with no state need none
        """Make this channel's ``p.state``; called once, before any send_prepare.

        Raises:
            MethodUnavailable: the channel cannot be served here: no device, no memory for it.
            Aborted: the migration was torn down meanwhile.
        """

    @abstractmethod
    def send_prepare(self, p: SendParams) -> None:
        """Append the payload of ``p.pages`` to ``p.iov``, in wire order.

        A page that is written during the call may come out as anything of its length. A page that
        is not must decode exactly, in this and in every later packet of the channel.

        Raises:
            Aborted: the migration was torn down meanwhile.
        """

    def native_send(self, p: SendParams) -> NativeHook | None:
        """`send_prepare` in native code for this channel; called once, after `send_setup`. None: there is none."""
        return None

    def send_cleanup(self, p: SendParams) -> None:
        """Release ``p.state``. Also called after a setup that failed; a second call does nothing."""
        p.state = None

    def recv_setup(self, p: RecvParams) -> None:  # noqa: B027 - see send_setup
        """Make this channel's ``p.state``; called once, before any recv. It may raise what `send_setup` may."""

    @abstractmethod
    def recv(self, p: RecvParams) -> None:
        """Fill ``p.pages`` from ``p.payload``.

        Raises:
            CodecError: the payload does not give exactly the pages' bytes. What was already
                written to the pages does not matter then.
            Aborted: the migration was torn down meanwhile.
        """

    def native_recv(self, p: RecvParams) -> NativeHook | None:
        """`recv` in native code for this channel; called once, after `recv_setup`. None: there is none."""
        return None

    def recv_cleanup(self, p: RecvParams) -> None:
        """Release ``p.state``. Also called after a setup that failed; a second call does nothing."""
        p.state = None


_ADDRESSES = 1 << 8 * struct.calcsize("P")
"""Of this machine."""


def max_payload(method: MultifdMethods, geometry: Geometry) -> int:
    """What the method promises, checked.

    Raises:
        HookError: it raised, or gave what is no number of bytes from 1 to `MAX_PAYLOAD`.
    """
    try:
        bound = method.max_payload(geometry)
    except Exception as e:
        raise HookError(f"method {method.name!r}: max_payload raised {e!r}") from e
    if type(bound) is not int or not 0 < bound <= MAX_PAYLOAD:
        raise HookError(f"method {method.name!r}: max_payload gave {bound!r}, expected 1 to {MAX_PAYLOAD}")
    return bound


def native_hook(
    method: MultifdMethods, name: Literal["native_send", "native_recv"], p: SendParams | RecvParams
) -> NativeHook | None:
    """A method's hook in native code, if it has one.

    Raises:
        MultifdError: passed through from the method.
        HookError: it raised anything else, or gave what is no `NativeHook`.
    """
    try:
        hook = getattr(method, name)(p)
    except MultifdError:
        raise
    except Exception as e:
        raise HookError(f"method {method.name!r}: {name} raised {e!r} on channel {p.channel}") from e
    if hook is None:
        return None
    if not isinstance(hook, NativeHook):
        raise HookError(f"method {method.name!r}: {name} gave {hook!r}, expected a NativeHook or None")
    optional = {word: getattr(hook, word) for word in ("state", "gather", "scatter")}
    for what, address, low in (("function", hook.function, 1), *((word, at, 0) for word, at in optional.items())):
        if type(address) is not int or not low <= address < _ADDRESSES:
            raise HookError(f"method {method.name!r}: {name} gave {what} {address!r}, expected an address")
    return hook


def settle(hook: NativeHook) -> None:
    """Let a hook in native code settle.

    Raises:
        MultifdError: passed through from the method.
        HookError: it raised anything else.
    """
    try:
        hook.settle()
    except MultifdError:
        raise
    except Exception as e:
        raise HookError(f"settle of a native hook raised {e!r}") from e


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
