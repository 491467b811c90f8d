"""Measured migrations: two real processes, a destination that is looked at, rows whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from mapped_files import build
from plain_files import PAGE

from multifd.bench import campaign, machine, schema
from multifd.bench.job import Job, Row, SourceSpec
from multifd.bench.measure import EndFailed, Ends, materialised, measure_one
from multifd.bench.memory import Destination, LoadedSource
from multifd.errors import MultifdError, RamError
from multifd.ram.image import open_source

DEADLINE_S = 60
RNG = random.Random(5)
BLOCKS = [
    (b"pc.ram", b"".join(RNG.choice([bytes(PAGE), b"word" * (PAGE // 4), RNG.randbytes(PAGE)]) for _ in range(300))),
    (b"vga", bytes(3 * PAGE) + RNG.randbytes(PAGE)),
]


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(build(BLOCKS))
    return SourceSpec("the capture", str(path))


def checked(row: Row) -> Row:
    """A row as another process would see it, which the schema allows."""
    evidence = campaign.Evidence()
    evidence.runs = [pickle.loads(pickle.dumps(row))]
    schema.check(json.loads(json.dumps(evidence.document())))
    return evidence.runs[0]


@pytest.mark.parametrize("method", ["none", "zlib", "zstd:level=3"])
def test_a_capture_with_devices_and_several_blocks(capture, method):
    row = checked(measure_one(Job(capture, method, channels=3, run=2)))
    assert (row.status, row.error) == ("verified", None)
    assert (row.source, row.method, row.channels, row.run) == ("the capture", method, 3, 2)
    assert row.machine == machine.name()
    figures = row.figures
    assert figures is not None
    assert figures.ram_bytes == 304 * PAGE
    assert figures.normal_pages + figures.zero_pages == 304
    assert figures.transferred_bytes > 0
    assert figures.source_peak_bytes > figures.ram_bytes / 2


def test_bytes_that_are_made_for_it():
    row = checked(measure_one(Job(SourceSpec("text", synthetic="text:256K"), "zstd", link_bits_per_s=10**9)))
    assert row.status == "verified", row.error
    assert row.figures is not None
    assert row.figures.ratio > 1
    assert row.link_bits_per_s == 10**9


def test_a_source_that_is_nothing_but_zero():
    row = checked(measure_one(Job(SourceSpec("zero", synthetic="zero:256K"), "none")))
    assert row.status == "verified", row.error
    assert row.figures is not None
    assert row.figures.zero_pages == 64


@pytest.mark.parametrize(
    ("path", "method", "words"),
    [("/nowhere", "none", "No such file"), ("", "nothing", "no method 'nothing'"), ("", "zlib:level=99", "level")],
)
def test_what_fails_is_a_row_that_says_why(path, method, words):
    spec = SourceSpec("x", path, "raw") if path else SourceSpec("x", synthetic="zero:64K")
    row = checked(measure_one(Job(spec, method)))
    assert row.status == "failed"
    assert words in (row.error or "")
    assert row.figures is None


def test_processes_serve_one_migration_after_another_and_leave_with_the_context():
    with materialised(SourceSpec("mix", synthetic="mix:512K")) as spec, Ends() as ends:
        for method in ("none", "zlib", "none"):
            figures, _ = ends.migrate(Job(spec, method))
            assert figures.ram_bytes == 1 << 19
        processes = [ends._source._process, ends._destination._process]
        assert [p.poll() for p in processes] == [None, None]
    assert [p.poll() for p in processes] == [0, 0]


def test_a_failure_of_one_end_is_told_and_neither_stays():
    with materialised(SourceSpec("zero", synthetic="zero:64K")) as spec, Ends() as ends:
        processes = [ends._source._process, ends._destination._process]
        with pytest.raises(EndFailed, match="no method 'nothing'"):
            ends.migrate(Job(spec, "nothing"))
    assert None not in [p.poll() for p in processes]


def test_what_both_ends_say_of_a_failure_is_told(monkeypatch):
    def broken_after_ready(end, name):
        said = iter([end.answer])

        def answer(timeout_s):
            for first in said:
                return first(timeout_s)
            raise EndFailed(f"the {name} broke")

        monkeypatch.setattr(end, "answer", answer)

    with materialised(SourceSpec("mix", synthetic="mix:512K")) as spec, Ends() as ends:
        broken_after_ready(ends._source, "source")
        broken_after_ready(ends._destination, "destination")
        with pytest.raises(EndFailed, match=r"^the source broke; the destination broke$"):
            ends.migrate(Job(spec, "none"))


def test_an_end_whose_parent_is_gone_ends():
    """As after SIGKILL of whoever measures: all that it holds open is closed."""
    end = subprocess.Popen([sys.executable, "-m", "multifd.bench.end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert end.stdin is not None
    end.stdin.close()
    assert end.wait(DEADLINE_S) == 0
    end.stdout.close()


@pytest.mark.parametrize("which", ["first", "last", "zero"])
def test_a_destination_that_differs_in_one_byte_is_found(capture, which):
    with contextlib.closing(open_source(capture.path)) as stored:
        target = Destination(stored)
        for name, data in BLOCKS:
            target._views[name.decode()][:] = data
        for piece in stored.device_state():
            target.add_device_state(piece)
        target.compare()
        at = {"first": ("pc.ram", 0), "last": ("vga", 4 * PAGE - 1), "zero": ("vga", 2 * PAGE + 5)}[which]
        target._views[at[0]][at[1]] ^= 1
        with pytest.raises(RamError, match=f"{at[0]!r}, page at {at[1] // PAGE * PAGE:#x}"):
            target.compare()


def test_devices_that_differ_are_found(capture):
    with contextlib.closing(open_source(capture.path)) as stored:
        target = Destination(stored)
        for name, data in BLOCKS:
            target._views[name.decode()][:] = data
        target.add_device_state(b"something else")
        with pytest.raises(RamError, match="the devices' state"):
            target.compare()


def test_a_loaded_source_is_the_stored_one(capture):
    with contextlib.closing(open_source(capture.path)) as stored:
        loaded = LoadedSource(stored)
        assert loaded.machine == stored.machine
        assert list(loaded.device_state()) == list(stored.device_state())
        for block, (_, data) in zip(loaded.blocks, BLOCKS, strict=True):
            assert bytes(block._memory.view) == data
        loaded.close()


def fake(job: Job) -> Row:
    return Row(job.source.id, job.method, job.channels, job.link_bits_per_s, "here", job.run, "", "failed", error="no")


def test_a_plan_interleaves():
    a, b = SourceSpec("a", "/a"), SourceSpec("b", "/b")
    jobs = campaign.plan([a, b], ["none", "zlib"], [1, 2], [None, 8], runs=2)
    keys = [(j.source.id, j.link_bits_per_s, j.channels, j.method) for j in jobs]
    assert len(keys) == 32
    assert keys[:16] == keys[16:]
    assert len(set(keys)) == 16
    assert [j.run for j in jobs] == [1] * 16 + [2] * 16


def test_what_was_measured_is_kept_when_it_is_interrupted(capture):
    evidence = campaign.Evidence(["multifd", "bench"])

    def measure(job: Job) -> Row:
        if job.run == 2:
            raise KeyboardInterrupt
        return fake(job)

    with pytest.raises(KeyboardInterrupt):
        campaign.investigate(campaign.plan([capture], ["none", "zlib"], runs=2), evidence, measure)
    evidence.is_cancelled = True
    document = evidence.document()
    schema.check(document)
    assert document["status"] == "cancelled"
    assert [(r["method"], r["run"]) for r in document["runs"]] == [("none", 1), ("zlib", 1)]
    assert [m["name"] for m in document["methods"]] == ["none", "zlib"]
    assert [c["method"] for c in document["codec"]] == ["zlib"]


def test_what_cannot_be_measured_is_found_before_anything_is(capture):
    for spec, method in [(capture, "nothing"), (replace(capture, path="/nowhere"), "none")]:
        with pytest.raises(MultifdError):
            campaign.investigate(campaign.plan([spec], [method]), campaign.Evidence(), lambda job: os.abort())
