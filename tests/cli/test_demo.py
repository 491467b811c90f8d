"""The demo: a receiving process that says too much or nothing, and one document however it ends."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from multifd.cli import demo
from multifd.cli.main import main
from multifd.errors import ChannelError
from multifd.stats import Result


def child(monkeypatch, code: str, tmp_path) -> demo._ReceivingProcess:
    script = tmp_path / "child.py"
    script.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(script))
    return demo._ReceivingProcess(tmp_path / "out", "none")


def test_one_that_says_a_lot_is_never_held_up(monkeypatch, tmp_path):
    code = "sys.stderr.write('listening on tcp:h:1\\n' + 'x' * (1 << 20) + '\\nlast\\n')"
    with child(monkeypatch, code, tmp_path) as process:
        assert process.uri() == "tcp:h:1"
        process.wait()
        process.stop()
        assert process.words == "last"


def test_the_error_is_told_and_not_the_notes_behind_it(monkeypatch, tmp_path):
    code = "sys.stderr.write('listening on tcp:h:1\\nmultifd: error: no room\\nmultifd: a note\\n')"
    with child(monkeypatch, code, tmp_path) as process:
        process.wait()
        process.stop()
        assert process.words == "no room"


def test_one_that_does_not_start_is_an_error_with_its_words(monkeypatch, tmp_path):
    with child(monkeypatch, "sys.exit('no room')", tmp_path) as process, pytest.raises(ChannelError, match="no room"):
        process.uri()


def test_a_failed_method_is_one_document_and_no_bug(monkeypatch):
    results = [Result("completed", "none"), Result("failed", "zlib", error="the destination differs")]
    monkeypatch.setattr(demo, "compare", lambda *args, **options: results)
    done = CliRunner().invoke(main, ["demo", "--json"])
    assert [r["method"] for r in json.loads(done.stdout)] == ["none", "zlib"]
    assert done.exit_code == 3
    assert "zlib" in done.stderr
    assert "bug" not in done.stderr


def test_more_ram_than_there_is_is_refused_before_it_is_written():
    done = CliRunner().invoke(main, ["demo", "--json", "--size", "1000000T"])
    assert done.exit_code == 2
    assert "this machine has" in json.loads(done.stdout)["error"]
