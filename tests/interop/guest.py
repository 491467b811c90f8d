"""A guest of one boot sector that dirties RAM for ever and keeps an invariant which a RAM dump shows.

It counts passes. In pass k it goes through a window of pages in order and writes k at the start and
at the end of each, and into the same page of a second window, *blink*, right behind the first: k in
odd passes and 0 in even ones, so pages keep turning into zero pages and back. Before each page it
notes at `NOTE` which one it is, counted over all passes. Hence, whenever it is stopped: pages before
the noted one hold k, pages behind it k-1, the noted one either; and blink follows. `check` tells.

It tests itself too: a page that does not hold k-1 when its turn comes means that RAM and the CPU's
registers are not from the same moment; the guest prints ``!`` to the debug port 0xe9 and halts. Else
it prints ``.`` for each pass, so a test sees it run. The timer interrupt paces it: `batch` pages each
10 ms, and the CPU sleeps in between.

Each store comes right after INVLPG of its page: QEMU before 9.0 under TCG forgets dirty pages
whose TLB entry is hot (fixed by "physmem: Fix migration dirty bitmap coherency with TCG memory access").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

PAGE = 4096
_ORIGIN = 0x7C00  # where a BIOS loads the boot sector
NOTE = 0x9000  # a page of its own, which no BIOS uses: "mfdg", then pass * pages + page, in one store
_MAGIC = int.from_bytes(b"mfdg", "little")
_RAN, _BROKEN = b".", b"!"


class BrokenGuest(AssertionError):
    """RAM is not what the guest can have left."""


@dataclass(frozen=True)
class Guest:
    """What the guest does.

    Args:
        first: Address of the first page; nothing else uses RAM from 8 MiB on.
        pages: Pages in each of the two windows.
        batch: Pages in each 10 ms.
    """

    first: int = 8 << 20
    pages: int = 1024
    batch: int = 64

    @property
    def size(self) -> int:
        """Bytes in one window."""
        return self.pages * PAGE

    def disk(self) -> bytes:
        """A disk of 1 MiB that boots it."""
        return self._sector().ljust(1 << 20, b"\0")

    def _sector(self) -> bytes:
        end = self.first + self.size
        code = _Listing()
        code.emit("fa", "cli")
        code.emit("31 c0", "xor ax, ax")
        code.emit("8e d8", "mov ds, ax")
        code.emit("0f 01 16", "lgdt [gdtr]").address16("gdtr")
        code.emit("0f 01 1e", "lidt [idtr]").address16("idtr")
        code.emit("0f 20 c0", "mov eax, cr0")
        code.emit("40", "inc ax: protection enable, bit 0, was clear")
        code.emit("0f 22 c0", "mov cr0, eax")
        code.emit("ea", "jmp 0x08:flat").address16("flat").emit("08 00")
        code.label("flat")  # 32-bit code from here
        code.emit("66 b8 10 00", "mov ax, 0x10")
        code.emit("8e d8", "mov ds, ax")
        code.emit("8e d0", "mov ss, ax")
        code.emit("bc").word(_ORIGIN, "mov esp, 0x7c00")
        code.emit("b0 fe e6 21", "mov al, 0xfe; out 0x21, al: the timer's interrupt alone")
        code.emit("b0 ff e6 a1", "mov al, 0xff; out 0xa1, al")
        code.emit("b0 34 e6 43", "mov al, 0x34; out 0x43, al: timer 0 as rate generator")
        code.emit("b0 9c e6 40", "mov al, 0x9c; out 0x40, al: 1193182 Hz / 0x2e9c = 100 Hz")
        code.emit("b0 2e e6 40", "mov al, 0x2e; out 0x40, al")
        code.emit("be").word(self.first, "mov esi, first")
        code.label("clear")
        code.emit("83 26 00", "and dword [esi], 0")
        code.emit("81 c6").word(PAGE, "add esi, 4096")
        code.emit("81 fe").word(end, "cmp esi, end")
        code.emit("72").relative8("clear", "jb clear")
        code.emit("31 db", "xor ebx, ebx: the pass")
        code.emit("bf").word(self.pages - 1, "mov edi, pages - 1: pages so far, if there was a pass 0")
        code.emit("b9").word(self.batch, "mov ecx, batch")
        code.emit("c7 05").word(NOTE).word(_MAGIC, "mov dword [NOTE], magic")
        code.label("pass")
        code.emit("43", "inc ebx")
        code.emit("be").word(self.first, "mov esi, first")
        code.label("page")
        code.emit("0f 01 3d").word(NOTE, "invlpg [NOTE]")
        code.emit("47", "inc edi")
        code.emit("89 3d").word(NOTE + 4, "mov [NOTE + 4], edi")
        code.emit("8b 06", "mov eax, [esi]")
        code.emit("40", "inc eax")
        code.emit("39 d8", "cmp eax, ebx")
        code.emit("75").relative8("broken", "jne broken")
        code.emit("0f 01 3e", "invlpg [esi]")
        code.emit("89 06", "mov [esi], eax")
        code.emit("89 86").word(PAGE - 4, "mov [esi + 4092], eax")
        code.emit("89 c2", "mov edx, eax")
        code.emit("83 e2 01", "and edx, 1")
        code.emit("f7 da", "neg edx: all ones in odd passes, else 0")
        code.emit("21 c2", "and edx, eax")
        code.emit("0f 01 be").word(self.size, "invlpg [esi + size]")
        code.emit("89 96").word(self.size, "mov [esi + size], edx")
        code.emit("49", "dec ecx")
        code.emit("75").relative8("on", "jnz on")
        code.emit("b9").word(self.batch, "mov ecx, batch")
        code.emit("fb f4 fa", "sti; hlt; cli")
        code.label("on")
        code.emit("81 c6").word(PAGE, "add esi, 4096")
        code.emit("81 fe").word(end, "cmp esi, end")
        code.emit("72").relative8("page", "jb page")
        code.emit("b0").raw(_RAN, "mov al, '.'")
        code.emit("e6 e9", "out 0xe9, al")
        code.emit("eb").relative8("pass", "jmp pass")
        code.label("broken")
        code.emit("b0").raw(_BROKEN, "mov al, '!'")
        code.emit("e6 e9", "out 0xe9, al")
        code.emit("fa f4", "cli; hlt")
        code.label("tick")
        code.emit("50", "push eax")
        code.emit("b0 20 e6 20", "mov al, 0x20; out 0x20, al: end of interrupt")
        code.emit("58 cf", "pop eax; iret")
        code.label("gdt")
        code.raw(bytes(8), "the null descriptor")
        code.emit("ff ff 00 00 00 9a cf 00", "0x08: code, 4 GiB from 0")
        code.emit("ff ff 00 00 00 92 cf 00", "0x10: data, 4 GiB from 0")
        code.label("gate")  # the BIOS left IRQ 0 at vector 8
        code.address16("tick").emit("08 00 00 8e 00 00", "interrupt gate 0x08:tick")
        code.label("gdtr")
        code.emit("17 00", "limit").address16("gdt").emit("00 00")
        code.label("idtr")
        code.emit("47 00", "limit: vectors 0 to 8").address16("gate", -8 * 8).emit("00 00")
        return code.link(510) + b"\x55\xaa"


class _Listing:
    """Machine code as it is written down: bytes beside their assembly, and labels."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._fixes: list[tuple[int, str, int, bool]] = []

    def emit(self, hexadecimal: str, assembly: str = "") -> _Listing:
        """Bytes in hexadecimal; the assembly is for the reader."""
        return self.raw(bytes.fromhex(hexadecimal), assembly)

    def raw(self, code: bytes, assembly: str = "") -> _Listing:
        self._code += code
        return self

    def word(self, value: int, assembly: str = "") -> _Listing:
        """Four bytes of immediate or address."""
        return self.raw(struct.pack("<I", value), assembly)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def address16(self, label: str, plus: int = 0) -> _Listing:
        """A label's address, two bytes."""
        self._fixes.append((len(self._code), label, plus, False))
        return self.raw(bytes(2))

    def relative8(self, label: str, assembly: str = "") -> _Listing:
        """The distance to a label from behind this byte."""
        self._fixes.append((len(self._code), label, 0, True))
        return self.raw(bytes(1), assembly)

    def link(self, size: int) -> bytes:
        """The code with its labels filled in, padded to `size` bytes."""
        for at, label, plus, is_relative in self._fixes:
            target = self._labels[label]
            if is_relative:
                struct.pack_into("<b", self._code, at, target - at - 1)
            else:
                struct.pack_into("<H", self._code, at, _ORIGIN + target + plus)
        if len(self._code) > size:
            raise ValueError(f"{len(self._code)} bytes of code, {size} fit")
        return bytes(self._code).ljust(size, b"\0")


@dataclass(frozen=True)
class State:
    """Where the guest was."""

    passes: int  # the pass in work, from 1
    page: int  # index of the page in work


def check(ram: bytes | bytearray | memoryview, guest: Guest) -> State:
    """The state of `guest` in `ram`, which starts at address 0.

    Raises:
        BrokenGuest: It never ran, or a page is not what it can have left.
    """
    magic, note = struct.unpack_from("<II", ram, NOTE)
    passes, page = divmod(note, guest.pages)
    if magic != _MAGIC or passes < 1:
        raise BrokenGuest("the guest has not started")
    words = np.frombuffer(ram, "<u4", 2 * guest.size // 4, guest.first).reshape(2, guest.pages, PAGE // 4)
    now = np.where(np.arange(guest.pages) < page, passes, passes - 1).astype(np.uint32)
    for what, found, expected in (
        ("starts with", words[0, :, 0], now),
        ("ends with", words[0, :, -1], now),
        ("blinks with", words[1, :, 0], now * (now & 1)),
    ):
        wrong = np.flatnonzero(found != expected)
        wrong = wrong[wrong != page]
        if len(wrong):
            i = int(wrong[0])
            raise BrokenGuest(
                f"{len(wrong)} pages are wrong in pass {passes} at page {page}: the first is page {i}, "
                f"which {what} {found[i]}, expected {expected[i]}"
            )
    new, old = (passes, passes * (passes & 1)), (passes - 1, (passes - 1) * ((passes - 1) & 1))
    start, end, blink = int(words[0, page, 0]), int(words[0, page, -1]), int(words[1, page, 0])
    if start not in (old[0], new[0]) or end not in (old[0], new[0]) or blink not in (old[1], new[1]):
        raise BrokenGuest(f"page {page}, in work in pass {passes}, holds {start}, {end}, {blink}")
    return State(passes, page)


def passes_printed(console: bytes) -> int:
    """How many passes the guest has printed.

    Raises:
        BrokenGuest: It found that RAM and CPU do not fit together, or something else printed.
    """
    if console.strip(_RAN):
        raise BrokenGuest(f"the guest printed {console[-40:]!r}")
    return len(console)
