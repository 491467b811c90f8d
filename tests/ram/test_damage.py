"""Damaged copies of captures: each is refused by its name before anybody is connected to.

Each case has a number, from which everything about it follows; a failing one is repeated by that. There are 300, or as
many as MULTIFD_DAMAGED_COPIES says.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_image
from mapped_files import PAGE, build
from plain_files import build_plain, save_header

import multifd
from multifd.errors import ChannelError, RamError
from multifd.ram import capture, digest, sidecar
from multifd.ram.image import open_source

COUNT = int(os.environ.get("MULTIFD_DAMAGED_COPIES", "300"))
IN_A_TEST = 25
SMALL, OTHER = make_image(60, 3), make_image(60, 4)


def forms(image: bytes) -> dict[str, bytes]:
    blocks = [(b"pc.ram", image), (b"pc.bios", b"firmware" * 1024)]
    plain = build_plain(blocks)
    return {
        "mapped-ram": build(blocks, align=PAGE),
        "stream": plain,
        "libvirt-raw": save_header(0) + plain,
        "raw": image,
    }


SOUND, OTHERS = forms(SMALL), forms(OTHER)
Damage = Callable[[random.Random, bytearray], None]


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for at in rng.sample(range(len(data)), rng.choice([1, 1, 1, 2, 5])):
        data[at] ^= 1 << rng.randrange(8)


def flip_in_the_start(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(200)] ^= 1 << rng.randrange(8)


def flip_in_the_end(rng: random.Random, data: bytearray) -> None:
    data[-rng.randint(1, 140)] ^= 1 << rng.randrange(8)


def cut_off(rng: random.Random, data: bytearray) -> None:
    del data[rng.choice([0, rng.randrange(len(data)), len(data) - 1, len(data) // PAGE // 2 * PAGE]) :]


def append(rng: random.Random, data: bytearray) -> None:
    data += rng.choice([b"\0", bytes(PAGE), rng.randbytes(PAGE)])


def overwrite(rng: random.Random, data: bytearray) -> None:
    """What a bad sector or a torn write leaves."""
    count = rng.choice([512, PAGE, len(data) // 5])
    at = rng.randrange(len(data) - count)
    data[at : at + count] = rng.randbytes(count)


def zero(rng: random.Random, data: bytearray) -> None:
    """What a crash leaves of bytes that had not reached the disk."""
    count = rng.choice([PAGE, len(data) // 2, len(data)])
    at = rng.randrange(len(data) - count + 1)
    data[at : at + count] = bytes(count)


def swap_pieces(rng: random.Random, data: bytearray) -> None:
    a, b = sorted(rng.sample(range(len(data) // PAGE), 2))
    for i, j in ((a, b),):
        one, other = data[i * PAGE : (i + 1) * PAGE], data[j * PAGE : (j + 1) * PAGE]
        data[i * PAGE : (i + 1) * PAGE], data[j * PAGE : (j + 1) * PAGE] = other, one


DAMAGES: tuple[Damage, ...] = (
    flip_bits, flip_bits, flip_in_the_start, flip_in_the_end, cut_off, append, overwrite, zero, swap_pieces,
)  # fmt: skip


def damage_sidecar(rng: random.Random, place: Path, other: bytes) -> None:
    """Something that is not the file's sidecar in its place, other than one that is older."""
    text = bytearray(place.read_bytes())
    match rng.randrange(6):
        case 0:
            text[:] = other
        case 1:
            at = rng.choice([rng.randrange(64), rng.randrange(len(text) // 2, len(text))])
            text[at] ^= 1 << rng.randrange(7)
        case 2:
            del text[rng.randrange(60) :]
        case 3:
            text[:] = rng.randbytes(rng.randrange(2000))
        case 4:
            text[:] = b"\n" * rng.randrange(1, 100) + text
        case 5:
            place.unlink()
            rng.choice([lambda: os.mkfifo(place), place.mkdir, lambda: place.symlink_to("nowhere")])()
            return
    place.write_bytes(text)


def made(path: Path, data: bytes) -> bytes:
    """Write a file and its sidecar; returns the sidecar."""
    path.write_bytes(data)
    with contextlib.closing(open_source(path)) as source:
        return digest.make(source).read_bytes()


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], bytes]:
    """Of each form, of the sound file and of another capture of the same name."""
    found = {}
    for form in SOUND:
        for is_other, data in ((False, SOUND[form]), (True, OTHERS[form])):
            found[form, is_other] = made(tmp_path_factory.mktemp("sound") / "vm.ram", data)
    return found


def refusal(path: Path, mode: str = "auto") -> str:
    """What `send` says before it connects; it never has anybody to connect to."""
    with pytest.raises(RamError) as caught:
        multifd.send(multifd.Image(path, digest=mode), f"unix:{path.parent}/nobody", connect_timeout=0.001)
    return str(caught.value)


@pytest.mark.parametrize("first", range(0, COUNT, IN_A_TEST))
def test_damaged_copies_are_refused_by_name(tmp_path, sidecars, first):
    for number in range(first, min(first + IN_A_TEST, COUNT)):
        rng = random.Random(number)
        form = rng.choice(list(SOUND))
        folder = tmp_path / str(number)
        folder.mkdir()
        path, place = folder / "vm.ram", folder / "vm.ram.sha256"
        place.write_bytes(sidecars[form, False])
        data = bytearray(SOUND[form])
        if rng.random() < 0.25:
            damage_sidecar(rng, place, sidecars[form, True])
            path.write_bytes(data)
            if place.is_file():
                os.utime(path, ns=(1, 1))  # older than its sidecar, as ever
        else:
            while data == SOUND[form]:
                rng.choice(DAMAGES)(rng, data)
            path.write_bytes(data)
            if rng.random() < 0.5:
                os.utime(place, ns=(1, 1))  # a copy that does not keep times may be newer
        said = refusal(path)
        assert said.startswith((f"{path}: ", f"{place}: ")), (number, said)
        with pytest.raises(RamError):
            capture.verify(path)


@pytest.mark.parametrize("form", SOUND)
def test_the_copies_are_sound_without_damage(tmp_path, sidecars, form):
    """Or all of them would be refused for another reason."""
    path = tmp_path / "vm.ram"
    path.write_bytes(SOUND[form])
    (tmp_path / "vm.ram.sha256").write_bytes(sidecars[form, False])
    with pytest.raises(ChannelError):
        multifd.send(path, f"unix:{tmp_path}/nobody", connect_timeout=0.001)


@pytest.mark.parametrize("form", ["mapped-ram", "stream", "libvirt-raw"])
def test_a_flipped_page_without_a_sidecar_is_told_as_not_checked(tmp_path, form):
    page = next(SMALL[at : at + PAGE] for at in range(0, len(SMALL), PAGE) if any(SMALL[at : at + PAGE]))
    data = bytearray(SOUND[form])
    data[data.index(page) + 99] ^= 1
    path = tmp_path / "vm.ram"
    path.write_bytes(data)
    assert "not checked: there is no vm.ram.sha256" in capture.verify(path).checked.words
    assert "not checked: there is no vm.ram.sha256" in refusal(path, "require")


def test_a_stranger_in_the_sidecars_place_costs_no_memory(tmp_path):
    """An endless or huge one is refused by its length."""
    path = tmp_path / "vm.ram"
    made(path, SOUND["mapped-ram"])
    os.truncate(tmp_path / "vm.ram.sha256", 1 << 40)
    assert f"expected digests in at most {sidecar._MOST_BYTES}" in refusal(path)
    (tmp_path / "vm.ram.sha256").unlink()
    (tmp_path / "vm.ram.sha256").symlink_to("/dev/zero")
    assert "not a regular file" in refusal(path)
