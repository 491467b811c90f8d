"""A library file that is damaged or is none never ends the process that looks at it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import child
import pytest
from multifd_qpl import elf

_CUTS = (0, 1, 16, 63, 64, 100, 1000, 4096, 8192)


def damaged(folder: Path, whole: Path) -> dict[str, str]:
    """Files that are not a library of this machine: path to a word of what is said of it."""
    data = whole.read_bytes()
    files: dict[str, tuple[bytes, str]] = {
        f"cut-{size}": (data[:size], "cut short" if size >= 4 else "not an ELF file")
        for size in (*_CUTS, len(data) // 2)
        if size < len(data) // 2 + 1
    }
    files |= {
        "text": (b"int main;", "not an ELF file"),
        "other-machine": (data[:18] + struct.pack("<H", 0xF3) + data[20:], "not a shared object for this machine"),
        "32-bit": (data[:4] + b"\x01" + data[5:], "not a shared object for this machine"),
        "big-endian": (data[:5] + b"\x02" + data[6:], "not a shared object for this machine"),
        "program": (data[:16] + struct.pack("<H", 2) + data[18:], "not a shared object for this machine"),
        "far-headers": (data[:32] + struct.pack("<Q", 1 << 62) + data[40:], "cut short or damaged"),
        "farther-headers": (data[:32] + struct.pack("<Q", (1 << 64) - 1) + data[40:], "cut short or damaged"),
        "many-headers": (data[:56] + struct.pack("<H", 0xFFFF) + data[58:], "cut short or damaged"),
        "no-headers": (data[:56] + struct.pack("<H", 0) + data[58:], "cut short or damaged"),
        "odd-headers": (data[:54] + struct.pack("<H", 1) + data[56:], "cut short or damaged"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    os.symlink("/nowhere/at/all", folder / "dangling")
    others = {"folder": "not a regular file", "fifo": "not a regular file", "dangling": "No such file"}
    words = {name: word for name, (_, word) in files.items()} | others
    return {str(folder / name): word for name, word in words.items()}


def test_every_damage_has_its_word(tmp_path: Path, standin: str) -> None:
    for path, word in damaged(tmp_path, Path(standin)).items():
        with pytest.raises(elf.NotLoadable, match=word) as caught:
            elf.check(path)
        assert path in str(caught.value)


def test_a_sound_library_opens(standin: str) -> None:
    elf.check(standin)
    opened, path = elf.open_shared(standin)
    assert path == standin
    assert opened.qpl_fini_job


def test_no_damage_ends_the_process(tmp_path: Path, standin: str) -> None:
    """The method stays available, by ISA-L, with the reason; in one process, all files in turn."""
    code = f"""
import os
from multifd_qpl.method import QplMethod, QplOptions
for path, word in {damaged(tmp_path, Path(standin))!r}.items():
    os.environ["MULTIFD_QPL_LIBRARY"] = path
    available = QplMethod.availability(QplOptions())
    assert available.ok and available.engine == "isal", available
    assert path in available.reason and word in available.reason, available
"""
    child.run(code)


def test_the_linkers_own_search(tmp_path: Path, standin: str) -> None:
    """A name is looked for where the dynamic linker looks: a damaged file there does no harm, the next is taken."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, size in ((first, 4096), (second, None)):
        folder.mkdir()
        (folder / "libqpl.so.1").write_bytes(Path(standin).read_bytes()[:size])
    code = f"""
import os
os.environ.pop("MULTIFD_QPL_LIBRARY", None)
from multifd_qpl import elf
from multifd_qpl.library import load
assert list(elf.candidates("libqpl.so.1"))[:2] == [{str(first / "libqpl.so.1")!r}, {str(second / "libqpl.so.1")!r}]
assert load().path == {str(second / "libqpl.so.1")!r}
assert elf.is_cut_short("libqpl.so.1")
"""
    child.run(code, LD_LIBRARY_PATH=f"{first}:{second}")


def test_a_damaged_libaccel_config_is_not_met(tmp_path: Path, standin: str) -> None:
    """libqpl opens it with the first hardware job, so none is asked for; nor does `multifd-iaa status` open it."""
    (tmp_path / "libaccel-config.so.1").write_bytes(Path(standin).read_bytes()[:4096])
    code = """
from multifd_qpl.method import QplMethod, QplOptions
available = QplMethod.availability(QplOptions())
assert available.engine == "isal" and "libaccel-config.so.1, which libqpl would open, is cut short" in available.reason
from multifd_qpl.devices import read_status
status = read_status()
assert not status.accel_config
assert any("libaccel-config.so.1: cut short" in reason for reason in status.missing), status.missing
"""
    child.run(code, MULTIFD_QPL_LIBRARY=standin, LD_LIBRARY_PATH=str(tmp_path))


def test_the_cache_of_the_linker() -> None:
    found = elf._cached("libc.so.6")
    if not found:
        pytest.skip("this machine has no /etc/ld.so.cache with libc.so.6")
    assert any(os.path.exists(path) for path in found)
    assert elf._cached("libmultifd-no-such.so.9") == []


@pytest.mark.parametrize("cache", [b"", b"glibc-ld.so.cache1.1", b"glibc-ld.so.cache1.1" + b"\xff" * 100, b"x" * 5000])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bytes) -> None:
    (tmp_path / "ld.so.cache").write_bytes(cache)
    monkeypatch.setattr(elf, "_CACHE", str(tmp_path / "ld.so.cache"))
    assert elf._cached("libc.so.6") == []


def test_the_environment_names_no_library_in_a_privileged_process(
    monkeypatch: pytest.MonkeyPatch, standin: str
) -> None:
    from multifd_qpl import library

    monkeypatch.setenv("MULTIFD_QPL_LIBRARY", standin)
    assert library.named_library() == standin
    monkeypatch.setattr(library, "is_privileged", lambda: True)
    assert library.named_library() is None
