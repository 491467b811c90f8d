"""SIGINT and SIGTERM: an exception once, never in the middle of what is printed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest

from multifd.cli import digest, signals
from multifd.cli.main import main
from multifd.interrupts import held
from multifd.ram.part_file import PartFile

DEADLINE_S = 60
EXPECTED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: signals.Terminated}


@pytest.fixture(autouse=True)
def handlers():
    """Each test leaves the handlers as they were."""
    before = {n: signal.getsignal(n) for n in EXPECTED}
    yield
    assert {n: signal.getsignal(n) for n in EXPECTED} == before


@pytest.mark.parametrize("number", EXPECTED)
def test_the_first_raises_and_the_next_do_not_interrupt_the_clean_up(number):
    done = []

    def run():
        try:
            signal.raise_signal(number)
        finally:
            for again in EXPECTED:
                signal.raise_signal(again)
            done.append("cleaned up")

    with pytest.raises(EXPECTED[number]), signals.raising():
        run()
    assert done == ["cleaned up"]


@pytest.mark.parametrize("number", EXPECTED)
def test_one_that_comes_while_held_takes_effect_afterwards(number):
    done = []

    def run():
        with held():
            signal.raise_signal(number)
            done.append("printed")
        done.append("not reached")

    with pytest.raises(EXPECTED[number]), signals.raising():
        run()
    assert done == ["printed"]


@pytest.mark.parametrize("number", EXPECTED)
def test_one_that_comes_while_polled_raises_where_it_is_asked_about(number):
    done = []

    def run():
        with signals.polled() as ask:
            ask()
            signal.raise_signal(number)
            done.append("made")
            ask()
            done.append("not reached")

    with pytest.raises(EXPECTED[number]), signals.raising():
        run()
    assert done == ["made"]
    with signals.raising():
        with signals.polled():
            signal.raise_signal(number)
        done.append("what it would have ended was done")
    assert len(done) == 2


@pytest.mark.parametrize("number", EXPECTED)
def test_one_that_comes_while_digests_are_made_leaves_them_or_nothing(tmp_path, monkeypatch, number):
    """Whichever step it comes at: their file is made last of all."""
    claim = PartFile._claim

    def interrupted(self):
        fd = claim(self)
        signal.raise_signal(number)
        return fd

    (tmp_path / "vm.ram").write_bytes(bytes(4096))
    monkeypatch.setattr(PartFile, "_claim", interrupted)
    assert digest.leave(tmp_path / "vm.ram") == str(tmp_path / "vm.ram.sha256")
    (tmp_path / "vm.ram.sha256").unlink()
    with signals.raising():
        main(["digest", str(tmp_path / "vm.ram")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vm.ram", "vm.ram.sha256"]


def test_none_takes_effect_once_the_end_is_known():
    with signals.raising():
        signals.ignore()
        for number in EXPECTED:
            signal.raise_signal(number)


def test_in_another_thread_nothing_changes():
    seen = []

    def run():
        with signals.raising(), held():
            signals.ignore()
            seen.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE_S)
    assert seen == [True]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_whose_starter_ignores_signals_can_be_ended(number, status, tmp_path):
    """A shell without job control starts what stands before an & with SIGINT ignored."""
    command = [sys.executable, "-m", "multifd", "receive", f"unix:{tmp_path}/sock", f"{tmp_path}/out", "--json"]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("listening on ")
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert len(out.splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_one_that_comes_before_the_command_begins(monkeypatch, capsys, number, status, word, as_json):
    """While the words of the command line are read."""

    def interrupted(*args, **options):
        signal.raise_signal(number)

    monkeypatch.setattr(main.commands["methods"], "parse_args", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["methods", "--json"] if as_json else ["methods"])
    out, err = capsys.readouterr()
    assert caught.value.code == status
    assert err == f"multifd: error: {word}\n"
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["cancelled"] * as_json
