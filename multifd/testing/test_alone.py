"""What shows only in a process of its own: memory beside the buffers, errors under gc, what is left, another host."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from multifd.registry import load_method, parse_spec
from multifd.testing.child import prove
from multifd.testing.harness import Broken, RecvEnd, Section, SendEnd, check_equal, round_trip
from multifd.testing.strategies import PACKET_KINDS, packet

_ALONE = "multifd.testing.alone"


def test_guard_pages(multifd_method: str) -> None:
    """No hook touches memory beside its pages, payload and scratch: it cannot be touched there."""
    prove(_ALONE, "guards", multifd_method)


def test_errors_release_memory(multifd_method: str) -> None:
    """An error of recv that is collected later takes no view of pages or payload with it."""
    prove(_ALONE, "errors", multifd_method)


def test_leaves_nothing(multifd_method: str, tmp_path: Path) -> None:
    """Threads, processes, descriptors, maps and files of a channel end with it."""
    prove(_ALONE, "leftovers", multifd_method, tmp_path)


def test_other_process(multifd_method: str) -> None:
    """Another process, with another hash seed, makes payloads that this one decodes; equal ones if that is promised."""
    method = load_method(multifd_method)
    lines = prove(_ALONE, "payloads", multifd_method, PYTHONHASHSEED="4711")
    with SendEnd(method) as send, RecvEnd(method) as recv:
        for kind, line in zip(PACKET_KINDS, lines, strict=True):
            data, payload = packet(kind, 21, 4096, 6), bytes.fromhex(line)
            check_equal(data, recv.unpack(payload, 6), 4096, f"{recv.where}, {kind}, made by another process")
            if method.capabilities.deterministic and send.pack(data) != payload:
                raise Broken(
                    "deterministic=True: equal pages after equal history give equal payloads, in every process",
                    Section.CAPABILITIES,
                    f"{send.where}, {kind}: a process with another hash seed makes another payload",
                )


def _variants(spec: str) -> list[str]:
    """Specs of the same method with each option at each of its limits and choices, where that can run here."""
    name, texts = parse_spec(spec)
    cls, variants = type(load_method(spec)), [spec]
    for info in cls.Options.describe():
        ends = info["choices"] or [v for v in (info["low"], info["high"]) if v is not None]
        for value in ("on", "off") if info["type"] == "bool" else ends:
            chosen = {**texts, info["name"]: str(value)}
            try:
                options = cls.Options.parse(chosen)
            except ValueError:
                continue
            if cls.availability(options).ok:
                variants.append(name + ":" + ",".join(f"{k}={v}" for k, v in chosen.items()))
    return variants


def test_receiver_defaults(multifd_method: str) -> None:
    """A receiver with default options decodes what a sender with any others makes, whatever instance was built last."""
    name = parse_spec(multifd_method)[0]
    for spec in _variants(multifd_method):
        try:
            for is_sender_last in (False, True):
                receiver = load_method(name)
                sender = load_method(spec)
                if not is_sender_last:
                    receiver = load_method(name)
                with SendEnd(sender) as send, RecvEnd(receiver) as recv:
                    for kind in PACKET_KINDS:
                        round_trip(send, recv, packet(kind, 14, 4096, 5), what=kind)
        except Broken as e:
            raise Broken(
                "a receiver with its defaults decodes what a sender with any options makes",
                Section.OPTIONS,
                f"sender {spec!r}, receiver {name!r}: {e}",
            ) from e


def test_options_unchanged(multifd_method: str) -> None:
    """No hook changes the options."""
    method = load_method(multifd_method)
    options, before = method.options, dataclasses.asdict(method.options)
    with SendEnd(method) as send, RecvEnd(method) as recv:
        for kind in PACKET_KINDS:
            round_trip(send, recv, packet(kind, 15, 4096, 5), what=kind)
    if method.options is not options or dataclasses.asdict(options) != before:
        raise Broken("options never change", Section.OPTIONS, f"method {method.name!r}: {before}, now {method.options}")


def test_stale_bytes(multifd_method: str) -> None:
    """A payload holds nothing that was in memory before: no page of another channel, no byte that was freed."""
    method = load_method(multifd_method)
    marker = random.Random(16).randbytes(64)
    with SendEnd(method, channel=1) as other, SendEnd(method) as send:
        for number, kind in enumerate(("zero", "text", "constant", "almost-zero", "code", "text")):
            other.pack(marker * 64 * 128)  # a whole packet
            heap = [marker * (size // 64) for size in (4096, 65536, 1 << 19, 1 << 20) for _ in range(4)]
            del heap
            payload = send.pack(packet(kind, number, 4096, 1 + number))
            found = next((at for at in range(0, 64, 8) if marker[at : at + 8] in payload), None)
            if found is not None:
                raise Broken(
                    "a payload holds no byte of another packet's or of freed memory",
                    Section.BUFFERS,
                    f"{send.where}, {kind}: it holds bytes of what was in the process's memory before",
                )
