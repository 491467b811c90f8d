"""Files with RAM and their digests after the tools that copy and pack them: with holes, without, elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import make_image
from ends import ReceiverThread
from interop.mapped import read_blocks
from mapped_files import PAGE, build
from plain_files import build_plain, save_header

import multifd
from multifd.ram import capture
from multifd.ram.digest import make
from multifd.ram.image import open_source

IMAGE = make_image(600, 7)
BLOCKS = [(b"pc.ram", IMAGE)]
DATA = {
    "mapped-ram": build(BLOCKS),
    "stream": build_plain(BLOCKS),
    "libvirt-raw": save_header(0) + build_plain(BLOCKS),
    "raw": IMAGE,
}
ZERO_PAGES = sum(not any(IMAGE[at : at + PAGE]) for at in range(0, len(IMAGE), PAGE))
PAIR = ("vm.ram", "vm.ram.sha256")

WAYS: dict[str, Sequence[Sequence[str]]] = {
    "cp --sparse=never": [["cp", "--sparse=never", *PAIR, "TO"]],
    "cp --sparse=always": [["cp", "--sparse=always", *PAIR, "TO"]],
    "cp -a": [["cp", "-a", *PAIR, "TO"]],
    "the sidecar first": [["cp", PAIR[1], "TO"], ["cp", PAIR[0], "TO"]],
    "tar": [["tar", "-cf", "a.tar", *PAIR], ["tar", "-xf", "a.tar", "-C", "TO"]],
    "tar -S": [["tar", "-cSf", "a.tar", *PAIR], ["tar", "-xf", "a.tar", "-C", "TO"]],
    "tar --touch": [["tar", "-czf", "a.tgz", *PAIR], ["tar", "-xmzf", "a.tgz", "-C", "TO"]],
    "gzip": [["gzip", "-k", "vm.ram"], ["cp", "vm.ram.gz", PAIR[1], "TO"], ["gzip", "-d", "TO/vm.ram.gz"]],
    "rsync": [["rsync", *PAIR, "TO/"]],
    "rsync -aS": [["rsync", "-aS", *PAIR, "TO/"]],
    "rsync --inplace": [["rsync", "--inplace", "--no-whole-file", *PAIR, "TO/"]],
    "dd": [["dd", "if=vm.ram", "of=TO/vm.ram", "bs=64K", "status=none"], ["cp", PAIR[1], "TO"]],
    "fallocate --dig-holes": [["cp", *PAIR, "TO"], ["fallocate", "--dig-holes", "TO/vm.ram"]],
}


def write_sparse(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), PAGE):
            if any(data[at : at + PAGE]):
                file.seek(at)
                file.write(data[at : at + PAGE])


def copied(tmp_path: Path, way: str, data: bytes) -> Path:
    """A file with digests after a way to another folder."""
    if missing := [tool for tool in {step[0] for step in WAYS[way]} if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_sparse(here / "vm.ram", data)
    with contextlib.closing(open_source(here / "vm.ram")) as source:
        make(source)
    for step in WAYS[way]:
        words = [word.replace("TO", os.fspath(there)) for word in step]
        done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)
    return there / "vm.ram"


@pytest.mark.parametrize("form", DATA)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_matches_its_digests_and_is_sent_as_ever(
    receiver: Callable[..., ReceiverThread], tmp_path: Path, way: str, form: str
) -> None:
    path = copied(tmp_path, way, DATA[form])
    assert path.read_bytes() == DATA[form]
    destination = receiver(tmp_path / "out", format="mapped-ram")
    result = multifd.send(multifd.Image(path, digest="require"), destination.uri)
    destination.join()
    assert result.notes == (f"{path}: matches vm.ram.sha256",)
    assert (result.normal_pages, result.zero_pages) == (600 - ZERO_PAGES, ZERO_PAGES)
    assert list(read_blocks(tmp_path / "out").values()) == [IMAGE]


@pytest.mark.parametrize("way", ["cp -a", "cp --sparse=never", "fallocate --dig-holes"])
def test_info_says_what_digging_holes_frees(tmp_path, cli, way):
    path = copied(tmp_path, way, DATA["mapped-ram"])
    with path.open("rb") as file:
        os.fsync(file)  # a file system counts some blocks only now
    before = capture.info(path)
    assert before.disk_bytes == path.stat().st_blocks * 512
    out, _ = cli("info", path).wait()
    assert f"on disk: {before.disk_bytes} bytes" in out
    assert ("fallocate --dig-holes frees them" in out) is (way == "cp --sparse=never")
    subprocess.run(["fallocate", "--dig-holes", path], check=True, timeout=60)
    freed = before.disk_bytes - path.stat().st_blocks * 512
    assert abs(before.unused_bytes - freed) <= 4 * PAGE
    assert capture.info(path).unused_bytes <= 4 * PAGE


def test_a_stream_has_no_holes_to_dig(tmp_path):
    path = tmp_path / "vm.ram"
    path.write_bytes(DATA["stream"])
    assert capture.info(path).unused_bytes <= PAGE
