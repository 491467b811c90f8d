"""bench and advise at the command line: documents, tables, what an interrupt leaves, one line for what is wrong."""

from __future__ import annotations

import json
import random
import signal

import pytest
from click.testing import CliRunner
from plain_files import PAGE

from multifd.bench import schema
from multifd.bench.campaign import plan
from multifd.bench.job import Row, SourceSpec
from multifd.bench.measure import EndFailed, Ends
from multifd.cli import console, evidence_tables
from multifd.cli.evidence_tables import BenchProgress, duration, link
from multifd.cli.main import main
from multifd.errors import UsageError

FEW = ("--method", "none", "--method", "zlib", "--runs", "2")


@pytest.fixture
def image(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "guest.ram"
    path.write_bytes(b"".join(rng.choice([bytes(PAGE), b"word" * 1024, rng.randbytes(PAGE)]) for _ in range(100)))
    return path


def test_bench_writes_a_document_and_prints_tables(cli, image, tmp_path):
    out = tmp_path / "result.json"
    command = cli("bench", image, "--synthetic", "text:256K", *FEW, "--link", "10Gbit", "--json", out)
    text, err = command.wait()
    document = schema.read(out)
    assert document["status"] == "completed"
    assert [s["id"] for s in document["sources"]] == [str(image), "text:256K"]
    assert len(document["runs"]) == 8
    assert {r["status"] for r in document["runs"]} == {"verified"}
    assert [r["run"] for r in document["runs"]] == [1] * 4 + [2] * 4
    assert [(r["method"], r["runs"], r["link_bits_per_s"]) for r in document["rows"]] == [
        ("none", 2, 10**10), ("zlib", 2, 10**10)
    ] * 2  # fmt: skip
    assert document["command"][1:3] == ["bench", str(image)]
    assert "8 of 8" in err
    for word in ("total time ms", "source CPU s", "bare codec", "met before", "10Gbit", "guest.ram"):
        assert word in text, word


def test_bench_prints_nothing_but_the_document_where_stdout_is_asked_for(cli, image):
    document = cli("bench", image, "--method", "none", "--runs", "1", "--json").json()
    schema.check(document)
    assert len(document["runs"]) == 1


def test_an_interrupt_keeps_what_was_measured(cli, tmp_path):
    out = tmp_path / "result.json"
    command = cli("bench", "--synthetic", "text:256K", "--method", "none", "--runs", "255", "--json", out)
    assert command.process.stderr is not None
    while "bench: 2 of 255" not in (line := command.process.stderr.readline()):
        assert line
    command.signal(signal.SIGINT)
    command.wait(130)
    document = schema.read(out)
    assert document["status"] == "cancelled"
    assert 2 <= len(document["runs"]) < 255


def test_an_interrupt_before_anything_was_measured_leaves_nothing(cli, tmp_path):
    out = tmp_path / "result.json"
    command = cli("bench", "--synthetic", "mix:64M", "--method", "none", "--json", out)
    assert command.process.stderr is not None
    assert "looking" in command.process.stderr.readline()
    command.signal(signal.SIGTERM)
    command.wait(143)
    assert list(tmp_path.iterdir()) == []


def test_advise_writes_a_document_and_says_it(cli, image, tmp_path):
    out = tmp_path / "advice.json"
    text, _ = cli("advise", image, "--link", "1Gbit", "--method", "none", "--method", "zlib", "--json", out).wait()
    document = schema.read(out, schema.ADVICE)
    assert document["best"]["method"] in ("none", "zlib")
    assert f"best: {document['best']['method']}: about" in text
    for word in (
        "not to compress",
        "sample: 100 of 100 pages",
        "migrate-set-parameters",
        "virsh",
        "multifd send",
        "sharing",
    ):
        assert word in text, word


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("bench",), 2, "nothing to measure"),
        (("bench", "--synthetic", "mix:1"), 2, "KIND:SIZE"),
        (("bench", "/nowhere"), 6, "No such file"),
        (("bench", "--synthetic", "text:64K", "--method", "zlip"), 3, "did you mean 'zlib'"),
        (("bench", "--synthetic", "zero:900T"), 2, "free here"),
        (("advise", "--link", "1Gbit"), 2, "nothing to measure"),
        (("advise", "--synthetic", "text:64K"), 2, "--link"),
        (("advise", "a", "--synthetic", "text:64K", "--link", "1Gbit"), 2, "one of the two"),
        (("advise", "/nowhere", "--link", "1Gbit"), 6, "No such file"),
        (("advise", "--synthetic", "zero:64K", "--link", "1Gbit"), 2, "any method will do"),
    ],
)
def test_what_cannot_be_meant_is_one_line(cli, tmp_path, words, status, said):
    out, err = cli(*words, cwd=tmp_path).wait(status)
    errors = [line for line in err.splitlines() if line.startswith("multifd: error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not out


def test_a_place_that_cannot_be_written_is_said_before_anything_is_measured(cli, image, tmp_path):
    where = tmp_path / "none" / "x.json"
    _, err = cli("bench", image, "--method", "none", "--json", where).wait(2)
    assert f"no folder {where.parent}" in err
    assert "looking" not in err


def test_a_disk_that_is_full_at_the_end_costs_the_document_not_the_tables(monkeypatch, tmp_path, image):
    def full(path, text):
        raise UsageError(f"{path}: No space left on device")

    monkeypatch.setattr(console, "write_whole", full)
    command = ["bench", str(image), "--method", "none", "--runs", "1", "--json", str(tmp_path / "x.json")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert "total time ms" in done.stdout


def test_a_migration_that_fails_is_a_row_and_a_status(monkeypatch, image):
    def migrate(ends, job):
        raise EndFailed("it \x1b broke")

    monkeypatch.setattr(Ends, "migrate", migrate)
    done = CliRunner().invoke(main, ["bench", str(image), "--method", "none", "--runs", "1", "--json"])
    assert done.exit_code == 3
    document = json.loads(done.stdout)
    schema.check(document)
    assert document["status"] == "failed"
    assert "1 of 1 migrations failed" in done.stderr
    assert "\x1b" not in done.stderr


def test_time_left_is_what_the_same_took_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(evidence_tables.time, "monotonic", lambda: now[0])
    jobs = plan([SourceSpec("s")], ["none", "zlib"], runs=3)
    with BenchProgress(jobs) as progress:
        assert progress.left_s() == 0
        for job, took in zip(jobs[:3], (1.0, 9.0, 3.0), strict=True):
            now[0] += took
            progress.advance(Row("s", job.method, 2, None, "here", job.run, "", "failed", error="x"))
        assert progress.left_s() == 9 + 2 + 9


def test_units():
    assert [link(b) for b in (None, 10**9, 25 * 10**8, 4 * 10**8, 8000, 10**12)] == [
        "unlimited", "1Gbit", "2.5Gbit", "400Mbit", "8Kbit", "1Tbit"
    ]  # fmt: skip
    assert [duration(s) for s in (0.4, 59.4, 61, 3600, 7320)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 2 min"]
