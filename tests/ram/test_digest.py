"""Digests beside a file: what they cover, who reads them, whom they never condemn."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped_files import PAGE, build
from plain_files import build_plain, save_header
from xxhash import xxh3_128

import multifd
from multifd.cli import digest as digests
from multifd.errors import RamError, UsageError
from multifd.ram import capture, digest, sidecar, span
from multifd.ram.checksum import HEX_DIGITS
from multifd.ram.digest import Verdict
from multifd.ram.export import export
from multifd.ram.image import open_source
from multifd.ram.span import Span

BLOCKS = [
    (b"pc.ram", make_image(300, 7)),
    (b"pc.bios", bytes(PAGE) + b"bios" * 3072),
    (b"empty", bytes(2 * PAGE)),
]
DATA = {
    "mapped-ram": build(BLOCKS),
    "stream": build_plain(BLOCKS),
    "libvirt-raw": save_header(0) + build_plain(BLOCKS),
    "raw": make_image(300, 7),
}
STORED = [name for name in DATA if name != "raw"]
ZEROS = {kind: ["0" * digits] * 2 for kind, digits in HEX_DIGITS.items()}
LONG_AGO, LATER = 1_600_000_000, 4_000_000_000  # seconds since 1970


def make(path: Path) -> Path:
    with contextlib.closing(open_source(path)) as source:
        return digest.make(source)


def check(path: Path, mode: str = "auto") -> Verdict:
    with contextlib.closing(open_source(path)) as source:
        return digest.check(source, mode)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def page_at(data: bytes, block: bytes) -> int:
    """Where a page of a block that is not zero lies in the file."""
    content = dict(BLOCKS)[block]
    page = next(content[at : at + PAGE] for at in range(0, len(content), PAGE) if any(content[at : at + PAGE]))
    return data.index(page)


def sealed(lines: list[bytes]) -> bytes:
    """A sidecar of these lines, with its last one."""
    text = b"".join(lines)
    return text + b"# " + sha256(text).hexdigest().encode() + b" of the lines above\n"


def version_1(text: bytes) -> bytes:
    """A sidecar as it was before it had XXH3-128."""
    first, _, *lines, _ = text.splitlines(keepends=True)
    lines = [re.sub(rb"^(# \w{64}) \w{32} ", rb"\1 ", line) for line in lines]
    return sealed([first, b"# multifd 1: SHA-256, first byte, bytes, what\n", *lines])


def resealed(text: bytes, column: int) -> bytes:
    """A sidecar with another digest in a column of its first piece, and its own last line."""
    first, title, piece, *lines, _ = text.splitlines(keepends=True)
    words = piece.split(b" ")
    words[1 + column] = b"0" * len(words[1 + column])
    return sealed([first, title, b" ".join(words), *lines])


@pytest.fixture(params=list(DATA))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each form, with its digests."""
    path = tmp_path / "vm.ram"
    path.write_bytes(DATA[request.param])
    make(path)
    return path


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """A capture with its digests."""
    path = tmp_path / "vm.ram"
    path.write_bytes(DATA["mapped-ram"])
    make(path)
    return path


class TestSidecar:
    def test_sha256sum_reads_it_strictly(self, path):
        done = subprocess.run(
            ["sha256sum", "-c", "--strict", "--warn", "vm.ram.sha256"], cwd=path.parent, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "vm.ram: OK\n", "")

    def test_what_sha256sum_writes_is_read(self, path):
        (path.parent / "vm.ram.sha256").write_bytes(
            subprocess.run(["sha256sum", "vm.ram"], cwd=path.parent, capture_output=True, check=True).stdout
        )
        assert check(path).digest == "match"
        flip(path, path.stat().st_size // 2)
        with pytest.raises(RamError, match="SHA-256 of the whole file"):
            check(path)

    @pytest.mark.parametrize("name", ["with space", "back\\slash", "new\nline", "ünï", os.fsdecode(b"\xff"), "# hash"])
    def test_names_as_sha256sum_has_them(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(DATA["raw"])
        place = make(path)
        assert place.name == f"{name}.sha256"
        done = subprocess.run(["sha256sum", name], cwd=tmp_path, capture_output=True, check=True)
        assert place.read_bytes().startswith(done.stdout)
        done = subprocess.run(["sha256sum", "-c", "--strict", place.name], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert check(path).digest == "match"

    def test_lines_cover_every_byte_once_and_are_its_digests(self, path):
        data = path.read_bytes()
        known = sidecar.read_beside(path)
        assert known is not None
        assert known.digest == sha256(data).hexdigest()
        end = 0
        for one, sha, xxh3 in zip(known.spans, known.digests["SHA-256"], known.digests["XXH3-128"], strict=True):
            assert one.first == end
            end += one.nbytes
            assert sha == sha256(data[one.first : end]).hexdigest()
            assert xxh3 == xxh3_128(data[one.first : end]).hexdigest()
        assert end == known.nbytes == len(data)

    def test_lines_say_which_block(self, mapped):
        known = sidecar.read_beside(mapped)
        assert known is not None
        at = page_at(DATA["mapped-ram"], b"pc.bios")
        (what,) = [s.what for s in known.spans if s.first <= at < s.first + s.nbytes]
        assert what == "block pc.bios at 0x0"
        assert known.spans[0].what == "structure"
        assert known.spans[-1].what == "devices"

    def test_who_may_read_the_file_may_read_it(self, path):
        for mode, expected in ((0o600, 0o600), (0o640, 0o640), (0o755, 0o644), (0o400, 0o600)):
            path.chmod(mode)
            assert make(path).stat().st_mode & 0o777 == expected

    def test_it_belongs_to_whom_the_file_does(self, mapped):
        if os.geteuid():
            pytest.skip("only root may give a file away")
        os.chown(mapped, 12345, 12346)
        found = make(mapped).stat()
        assert (found.st_uid, found.st_gid) == (12345, 12346)

    def test_it_is_alone(self, path):
        assert sorted(p.name for p in path.parent.iterdir()) == ["vm.ram", "vm.ram.sha256"]

    def test_its_length_is_bounded(self):
        for nbytes in (1, 1 << 20, (1 << 26) + 1, 1 << 36, 1 << 50):
            assert -(-nbytes // span.step_for(nbytes)) <= span.MOST
        what = "block " + span.short("\x1b" * 300) + " at 0xffffffffffffffff"
        lines = [Span(1 << 62, 1 << 62, what)] * 2 * span.MOST
        digests = {kind: ["0" * digits] * len(lines) for kind, digits in HEX_DIGITS.items()}
        assert len(sidecar.encode("n" * 255, "0" * 64, lines, digests)) < sidecar._MOST_BYTES


class TestDamage:
    @pytest.mark.parametrize("block", [b"pc.ram", b"pc.bios"])
    @pytest.mark.parametrize("form", STORED)
    def test_a_flipped_bit_in_a_page_names_its_block(self, tmp_path, form, block):
        path = tmp_path / "vm.ram"
        path.write_bytes(DATA[form])
        make(path)
        flip(path, page_at(DATA[form], block) + 77)
        with pytest.raises(RamError, match=rf"{block.decode()} (at|from) 0x[0-9a-f]+.* \(bytes \d+ to \d+ of the file"):
            check(path)

    @pytest.mark.parametrize("at", [0, 100, 12345, -1, -100])
    def test_any_byte_counts_also_those_that_nobody_reads(self, path, at):
        """In a gap, or in a page that is absent: sha256sum would find it, too."""
        with contextlib.closing(open_source(path)) as source:
            flip(path, at % path.stat().st_size)
            with pytest.raises(RamError, match="does not match"):
                digest.check(source)

    def test_holes_may_be_filled_and_dug(self, tmp_path):
        path = tmp_path / "vm.ram"
        with path.open("wb") as file:
            file.truncate(16 << 20)
            file.seek(8 << 20)
            file.write(make_image(100))
        make(path)
        assert path.stat().st_blocks * 512 < 1 << 20
        text = (tmp_path / "vm.ram.sha256").read_bytes()
        path.write_bytes(path.read_bytes())
        assert path.stat().st_blocks * 512 >= 16 << 20
        make(path)
        assert (tmp_path / "vm.ram.sha256").read_bytes() == text
        assert check(path).digest == "match"

    def test_none_is_said(self, path):
        (path.parent / "vm.ram.sha256").unlink()
        verdict = check(path)
        assert verdict.digest == "none"
        assert "not checked: there is no vm.ram.sha256" in verdict.words

    def test_require_and_ignore(self, path):
        flip(path, path.stat().st_size // 2)
        assert check(path, "ignore").digest == "ignored"
        (path.parent / "vm.ram.sha256").unlink()
        with pytest.raises(RamError, match=r"there is no vm\.ram\.sha256"):
            check(path, "require")
        with pytest.raises(UsageError, match="expected auto, require or ignore"):
            check(path, "maybe")

    def test_verify_knows_every_form(self, path):
        found = capture.verify(path)
        assert found.checked == Verdict("match", f"{path}: matches vm.ram.sha256")
        (ram, *_) = found.blocks
        assert (ram.used_length, ram.present_pages + ram.zero_pages) == (300 * PAGE, 300)
        zero = sum(not any(BLOCKS[0][1][at : at + PAGE]) for at in range(0, 300 * PAGE, PAGE))
        assert ram.zero_pages == zero
        flip(path, path.stat().st_size // 2)
        with pytest.raises(RamError, match="does not match"):
            capture.verify(path)

    def test_a_raw_image_without_digests_cannot_be_verified(self, tmp_path):
        (tmp_path / "vm.ram").write_bytes(DATA["raw"])
        with pytest.raises(RamError, match=r"not a capture: .*perhaps a raw image"):
            capture.verify(tmp_path / "vm.ram")

    def test_what_a_callback_raises_ends_it(self, path):
        class Enough(Exception):
            pass

        def tell(done: int, total: int) -> None:
            raise Enough

        for call in (digest.make, lambda source, tell: digest.check(source, "auto", tell)):
            with contextlib.closing(open_source(path)) as source, pytest.raises(Enough):
                call(source, tell)
        assert sorted(p.name for p in path.parent.iterdir()) == ["vm.ram", "vm.ram.sha256"]


PIECES = [
    b"0" * 64, b"f" * 64, b"  vm.ram", b" *vm.ram", b"  other", b"\n", b"# ", b"#", b"\\", b"\\q", b"\r", b" ",
    b"# multifd 1:", b"# multifd 1: SHA-256, first byte, bytes, what\n", b" 0 16384 structure\n", b" " + b"1" * 32,
    b"# multifd 2:", b"# multifd 2: SHA-256, XXH3-128, first byte, bytes, what\n",
    b" of the lines above\n", b" 99999999999999999999 1 x", b"\xff", b"\0",
]  # fmt: skip
WRONG_SIDECARS: dict[str, tuple[bytes | Callable[[bytes], bytes], str]] = {
    "empty": (b"", "line 1 is no digest"),
    "noise": (os.urandom(500), "no digest"),
    "text": (b"sha256 of vm.ram\n", "line 1 is no digest"),
    "short": (b"0" * 63 + b"  vm.ram\n", "line 1 is no digest"),
    "comments alone": (b"# nothing\n", "has 0 digests"),
    "several": (b"0" * 64 + b"  a\n" + b"1" * 64 + b"  b\n", "has 2 digests"),
    "twice": ((b"0" * 64 + b"  vm.ram\n") * 2, "has 2 digests"),
    "huge": (b"#" * (9 << 20), "bytes, expected digests in at most"),
    "cut in the middle": (lambda text: text[: len(text) // 2], "damaged itself, or not complete"),
    "without its last byte": (lambda text: text[:-2], "damaged itself, or not complete"),
    "a digit changed": (lambda text: text.replace(b" structure", b"0 structure", 1), "damaged itself"),
    "a line gone": (lambda text: b"\n".join(text.split(b"\n")[:3] + text.split(b"\n")[4:]), "damaged itself"),
}


class TestWrongSidecar:
    @given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)))
    @settings(max_examples=300, deadline=None)
    def test_whatever_it_is_it_is_read_or_refused(self, text):
        with contextlib.suppress(ValueError):
            found = sidecar._parse(text, "vm.ram", Path("vm.ram.sha256"), 0)
            assert len(found.digest) == 64
            assert all(len(found.spans) == len(digests) for digests in found.digests.values())
            assert list(found.digests) in ([], ["SHA-256"], ["XXH3-128", "SHA-256"])

    @pytest.mark.parametrize("name", WRONG_SIDECARS)
    def test_is_refused_by_name(self, mapped, name):
        change, says = WRONG_SIDECARS[name]
        place = mapped.with_name("vm.ram.sha256")
        place.write_bytes(change(place.read_bytes()) if callable(change) else change)
        with pytest.raises(RamError, match=rf"vm\.ram\.sha256: .*{says}"):
            check(mapped)

    def test_lines_that_do_not_follow_one_another(self, mapped):
        text = sidecar.encode("vm.ram", "0" * 64, [Span(0, 10, "a"), Span(11, 5, "b")], ZEROS)
        mapped.with_name("vm.ram.sha256").write_bytes(text)
        with pytest.raises(RamError, match="line 4 has no digest of what follows byte 10"):
            check(mapped)

    @pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "link to nothing", "link in a circle"])
    def test_what_is_no_file(self, mapped, kind):
        place = mapped.with_name("vm.ram.sha256")
        place.unlink()
        with contextlib.ExitStack() as stack:
            if kind == "folder":
                place.mkdir()
            elif kind == "fifo":
                os.mkfifo(place)
            elif kind == "socket":
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(place))
            else:
                place.symlink_to("nowhere" if kind == "link to nothing" else place.name)
            with pytest.raises(RamError, match=r"vm\.ram\.sha256: "):
                check(mapped)

    def test_one_that_may_not_be_read(self, mapped):
        place = mapped.with_name("vm.ram.sha256")
        place.chmod(0)
        if os.access(place, os.R_OK):
            pytest.skip("this user may read everything: root")
        with pytest.raises(RamError, match=r"vm\.ram\.sha256: Permission denied"):
            check(mapped)

    def test_a_link_to_one_is_followed(self, mapped):
        place = mapped.with_name("vm.ram.sha256")
        place.rename(mapped.with_name("elsewhere"))
        place.symlink_to("elsewhere")
        assert check(mapped).digest == "match"

    def test_of_another_file(self, mapped, tmp_path):
        other = tmp_path / "other.ram"
        other.write_bytes(build([(b"pc.ram", make_image(300, 8))]))
        shutil.copy(make(other), mapped.with_name("vm.ram.sha256"))
        with pytest.raises(RamError, match=r"does not match vm\.ram\.sha256, which is of other\.ram"):
            check(mapped)

    def test_a_pair_may_be_renamed(self, mapped):
        mapped.rename(mapped.with_name("new.ram"))
        mapped.with_name("vm.ram.sha256").rename(mapped.with_name("new.ram.sha256"))
        assert check(mapped.with_name("new.ram")).digest == "match"

    def test_version_1_had_no_xxh3(self, path):
        place = path.with_name("vm.ram.sha256")
        place.write_bytes(version_1(place.read_bytes()))
        assert (check(path).digest, capture.verify(path).checked.digest) == ("match", "match")
        flip(path, path.stat().st_size // 2)
        with pytest.raises(RamError, match=r"does not match vm\.ram\.sha256: .* of the file\)"):
            check(path)

    @pytest.mark.parametrize(("column", "refused"), [(0, [capture.verify]), (1, [capture.verify, check])])
    def test_one_of_two_digests_does_not_match(self, mapped, column, refused):
        """Somebody has written the sidecar anew."""
        place = mapped.with_name("vm.ram.sha256")
        place.write_bytes(resealed(place.read_bytes(), column))
        for call in (capture.verify, check):
            if call in refused:
                with pytest.raises(RamError, match=r"does not match vm\.ram\.sha256: structure"):
                    call(mapped)
            else:
                assert call(mapped).digest == "match"

    def test_a_later_versions_first_line_is_used(self, mapped):
        place = mapped.with_name("vm.ram.sha256")
        place.write_bytes(place.read_bytes().replace(b"# multifd 2:", b"# multifd 3:"))
        assert check(mapped).digest == "match"
        flip(mapped, page_at(DATA["mapped-ram"], b"pc.ram"))
        with pytest.raises(RamError, match="SHA-256 of the whole file"):
            check(mapped)


DIES_AT_EVERY_STEP = """
import contextlib, os, sys
from pathlib import Path
from multifd.ram import digest
from multifd.ram.block import bare_machine
from multifd.ram.file import write
from multifd.ram.image import open_source, open_target

def counted(call):
    def step(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os._exit(9)
        return call(*args, **kwargs)
    return step

def receive_and_digest(path):
    target = open_target(path, format="raw")
    target.allocate(bare_machine(4096, 4096))
    write(target._file.fd, b"\\1" * 4096, 0, target._file.part)
    target.commit(bytes(16))
    target.discard()
    with contextlib.closing(open_source(path)) as source:
        digest.make(source)

for name in ("fsync", "unlink", "replace", "pwritev", "ftruncate"):
    setattr(os, name, counted(getattr(os, name)))
for left in range(1, 40):
    step = left
    if not (child := os.fork()):
        receive_and_digest(Path(sys.argv[1]) / str(step) / "vm.ram")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(step)
        break
"""


class TestNewerFile:
    """A sidecar never condemns a capture that is newer than it."""

    @pytest.fixture
    def newer(self) -> bytes:
        return build([(b"pc.ram", make_image(300, 9)), *BLOCKS[1:]])

    def test_that_somebody_put_there(self, mapped, newer):
        os.utime(mapped.with_name("vm.ram.sha256"), (LONG_AGO, LONG_AGO))
        mapped.write_bytes(newer)
        verdict = check(mapped)
        assert verdict.digest == "older"
        assert "vm.ram.sha256 is older and of another file" in verdict.words
        with pytest.raises(RamError, match="is older"):
            check(mapped, "require")

    def test_that_differs_in_many_places_only(self, tmp_path):
        """A guest that ran for a second: few pages, all over."""
        content = bytearray(make_image(2000, 3))
        path = tmp_path / "vm.ram"
        path.write_bytes(build([(b"pc.ram", bytes(content))]))
        make(path)
        os.utime(tmp_path / "vm.ram.sha256", (LONG_AGO, LONG_AGO))
        for at in range(20):
            content[at * 100 * PAGE] ^= 1
            content[at * 100 * PAGE + 1] |= 1
        path.write_bytes(build([(b"pc.ram", bytes(content))]))
        assert check(path).digest == "older"

    def test_damage_of_a_newer_file_is_still_damage(self, path):
        """A copy that does not keep times is newer than its sidecar, too."""
        os.utime(path.with_name("vm.ram.sha256"), (LONG_AGO, LONG_AGO))
        assert check(path).digest == "match"
        flip(path, path.stat().st_size // 2)
        with pytest.raises(RamError, match="does not match"):
            check(path)

    def test_zeros_all_over_are_damage(self, mapped):
        """What a crash leaves of a file whose bytes had not reached the disk."""
        os.utime(mapped.with_name("vm.ram.sha256"), (LONG_AGO, LONG_AGO))
        start = page_at(DATA["mapped-ram"], b"pc.ram")
        with mapped.open("r+b") as file:
            file.seek(start)
            file.write(bytes(len(BLOCKS[0][1])))
        with pytest.raises(RamError, match=r"block pc\.ram at 0x0"):
            check(mapped)

    def test_another_file_that_is_not_newer_is_refused(self, mapped, newer):
        mapped.write_bytes(newer)
        os.utime(mapped.with_name("vm.ram.sha256"), (LATER, LATER))
        with pytest.raises(RamError, match="is not the file that was digested"):
            check(mapped)

    def test_a_clock_that_was_set_back_makes_no_sidecar_older(self, mapped, newer):
        """It was set back after the file was written, before it was digested: what differs all over is damage still."""
        os.utime(mapped, (LATER, LATER))
        make(mapped)
        mapped.write_bytes(newer)
        os.utime(mapped, (LATER, LATER))
        with pytest.raises(RamError, match=r"does not match vm\.ram\.sha256"):
            check(mapped)

    def test_a_clock_that_was_set_back_hides_no_other_file(self, mapped, newer):
        """It was set back after the file was digested, and another program put one there that is older than that."""
        os.utime(mapped, (LONG_AGO, LONG_AGO))
        make(mapped)
        mapped.write_bytes(newer)
        os.utime(mapped, (LONG_AGO + 1, LONG_AGO + 1))
        assert check(mapped).digest == "older"

    def test_receive_removes_what_is_there_before_it_replaces(self, receiver, mapped, tmp_path, newer):
        (tmp_path / "newer").write_bytes(newer)
        destination = receiver(mapped, format="mapped-ram")
        multifd.send(tmp_path / "newer", destination.uri)
        destination.join()
        assert not mapped.with_name("vm.ram.sha256").exists()
        assert check(mapped).digest == "none"
        assert capture.verify(mapped).blocks == capture.info(tmp_path / "newer").blocks

    def test_a_crash_between_the_two_leaves_the_old_without(self, receiver, mapped, tmp_path, monkeypatch):
        replace = os.replace

        def dies(*args, **kwargs):
            monkeypatch.setattr(os, "replace", replace)
            raise OSError(5, "dies here")

        before = mapped.read_bytes()
        destination = receiver(mapped, format="mapped-ram")
        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(multifd.errors.MultifdError):
            multifd.send(tmp_path / "vm.ram", destination.uri)
        with pytest.raises(RamError, match="dies here"):
            destination.join()
        assert mapped.read_bytes() == before
        assert check(mapped).digest == "none"

    @pytest.mark.parametrize("has_old", [True, False])
    def test_killed_at_any_step(self, tmp_path, has_old):
        """Whatever is there afterwards has its own digests or none, or its predecessor's are gone."""
        paths = {step: tmp_path / str(step) / "vm.ram" for step in range(1, 40)}
        for path in paths.values():
            path.parent.mkdir()
            if has_old:
                path.write_bytes(bytes(range(256)) * 16)
                make(path)
        done = subprocess.run(
            [sys.executable, "-c", DIES_AT_EVERY_STEP, tmp_path], capture_output=True, text=True, timeout=60
        )
        last = int(done.stdout)
        assert last > 5
        for path in [paths[step] for step in range(1, last + 1)]:
            if path.exists():
                assert path.read_bytes() in (bytes(range(256)) * 16, b"\1" * PAGE)
                assert check(path).digest in ("match", "none")
            else:
                assert not has_old
                assert not path.with_name("vm.ram.sha256").exists()
        assert check(paths[last]).digest == "match"
        assert paths[last].read_bytes() == b"\1" * PAGE

    def test_a_folder_in_the_sidecars_place_is_refused_at_once(self, tmp_path):
        (tmp_path / "out.sha256").mkdir()
        with pytest.raises(RamError, match=r"out\.sha256: a folder where digests"):
            multifd.receive("tcp:127.0.0.1:0", tmp_path / "out")

    @pytest.mark.parametrize("how", ["replaced", "written to"])
    def test_a_file_that_changes_while_it_is_digested_gets_none(self, mapped, newer, how):
        old = mapped.with_name("vm.ram.sha256").read_bytes()

        def tell(done: int, total: int) -> None:
            if how == "replaced":
                mapped.with_name("new").write_bytes(newer)
                mapped.with_name("new").replace(mapped)
            else:
                os.utime(mapped, (LATER, LATER))

        with (
            contextlib.closing(open_source(mapped)) as source,
            pytest.raises(RamError, match="was replaced or changed while it was digested"),
        ):
            digest.make(source, tell)
        assert mapped.with_name("vm.ram.sha256").read_bytes() == old

    def test_one_that_is_replaced_while_it_is_checked_is_not_condemned(self, mapped, newer):
        with contextlib.closing(open_source(mapped)) as source:
            mapped.with_name("new").write_bytes(newer)
            mapped.with_name("new").replace(mapped)
            make(mapped)
            with pytest.raises(RamError, match="was replaced or changed while it was checked"):
                digest.check(source)
        assert check(mapped).digest == "match"


class TestCommands:
    def test_send_refuses_before_it_connects(self, path):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            flip(path, path.stat().st_size // 2)
            uri = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(RamError, match="does not match"):
                multifd.send(path, uri)
            with pytest.raises(BlockingIOError):
                listener.accept()

    def test_send_says_what_was_checked(self, receiver, path, tmp_path):
        destination = receiver(tmp_path / "out", format="mapped-ram")
        result = multifd.send(path, destination.uri)
        destination.join()
        assert result.notes == (f"{path}: matches vm.ram.sha256",)

    def test_send_can_be_cancelled_while_it_compares(self, mapped):
        canceller = multifd.Canceller()
        image = multifd.Image(mapped, on_digest=lambda done, total: canceller.cancel())
        with pytest.raises(multifd.errors.Cancelled):
            # Refused at the next look, or when the engine begins: nobody listens there.
            multifd.send(image, "unix:/nonexistent/socket", canceller=canceller)

    def test_export_refuses(self, mapped, tmp_path):
        flip(mapped, page_at(DATA["mapped-ram"], b"pc.bios"))
        with pytest.raises(RamError, match=r"block pc\.bios at 0x0"):
            export(mapped, tmp_path / "out", "pc.ram")
        assert not (tmp_path / "out").exists()
        export(mapped, tmp_path / "out", "pc.ram", digest_mode="ignore")

    def test_export_forgets_digests_of_what_it_replaces(self, mapped, tmp_path):
        export(mapped, tmp_path / "out", "pc.ram")
        make(tmp_path / "out")
        export(mapped, tmp_path / "out", "pc.bios")
        assert check(tmp_path / "out").digest == "none"

    def test_digest_verify_and_send_as_a_user_has_them(self, cli, tmp_path):
        path = tmp_path / "vm.ram"
        path.write_bytes(DATA["mapped-ram"])
        out, err = cli("verify", path).wait()
        assert out == f"{path}: sound\n"
        assert err == (
            f"multifd: {path}: bytes inside pages are not checked: there is no vm.ram.sha256, which multifd digest "
            "makes\n"
        )
        assert cli("digest", path).wait()[0] == f"{path}.sha256\n"
        assert cli("verify", path).wait()[0] == f"{path}: sound, and matches vm.ram.sha256\n"
        flip(path, page_at(DATA["mapped-ram"], b"pc.ram"))
        for command in (["verify", path], ["send", path, "tcp:127.0.0.1:1"], ["export", path, tmp_path / "x"]):
            _, err = cli(*command).wait(6)
            *progress, error = err.splitlines()
            assert error.startswith(f"multifd: error: {path}: does not match vm.ram.sha256: block pc.ram at 0x"), err
            assert all("MiB digested" in line for line in progress)
        assert cli("verify", path, "--digest", "ignore").wait()[0] == f"{path}: sound\n"

    def test_receive_leaves_one_unless_told_otherwise(self, cli, mapped, tmp_path):
        for out, more in (("a", ()), ("b", ("--no-digest",))):
            destination = cli("receive", "tcp:127.0.0.1:0", tmp_path / out, "--json", *more)
            multifd.send(mapped, destination.listening())
            document = destination.json()
            assert document.get("sidecar") == (None if more else f"{tmp_path / out}.sha256")
            assert (tmp_path / f"{out}.sha256").exists() is not more
        assert check(tmp_path / "a").digest == "match"
        assert check(tmp_path / "b").digest == "none"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_digest_of_what_is_complete(self, mapped, monkeypatch, capsys, number):
        def digest_file(path, on_progress):
            signal.raise_signal(number)
            on_progress(0, 1)

        monkeypatch.setattr(capture, "digest_file", digest_file)
        assert digests.leave(mapped) is None
        assert "vm.ram: is complete, but has no digests: " in capsys.readouterr().err

    def test_receive_is_done_though_digests_cannot_be_written(self, cli, mapped, tmp_path):
        name = "n" * 240  # the sidecar's own part file would have more than 255 bytes
        destination = cli("receive", "tcp:127.0.0.1:0", tmp_path / name, "--json")
        multifd.send(mapped, destination.listening())
        assert destination.json()["sidecar"] is None
        assert "is complete, but has no digests" in destination.stderr
        assert check(tmp_path / name).digest == "none"
