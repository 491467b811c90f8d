"""Whatever a capture meets, guest, disks and settings are as they were; or what is left is remembered and recovered."""

from __future__ import annotations

import contextlib
import json
import os
import stat

import pytest
from manage.fake_qemu import FakeQemu, serve

import multifd
from multifd.errors import Cancelled, ControlError, MultifdError, RamError, UsageError
from multifd.manage.capture import capture, recover
from multifd.manage.monitor import MonitorLost, QmpMonitor, Refused
from multifd.manage.settings import Settings
from multifd.manage.state_file import State, StateFile
from multifd.ram.capture import verify

SNAPSHOT = "nightly"


@pytest.fixture
def fake(image):
    made = FakeQemu(image)
    yield made
    made.hook = lambda command, number: None
    made.end()


def state_file(out):
    return out.with_name(f".{out.name}.multifd-capture")


def commands_of_a_capture(image, tmp_path, **options):
    """Each command, but questions that are repeated."""
    fake = FakeQemu(image)
    try:
        capture(fake, tmp_path / "probe.ram", **options)
    finally:
        fake.end()
    return list(dict.fromkeys(fake.commands))


@pytest.mark.parametrize("state", ["running", "paused", "prelaunch", "shutdown"])
@pytest.mark.parametrize("snapshot", ["", SNAPSHOT])
def test_settings_are_put_back_and_the_guest_is_as_before(fake, tmp_path, state, snapshot):
    out, fake.run_state = tmp_path / "vm.ram", state
    before = fake.look()
    done = capture(fake, out, "zstd:level=3", channels=3, snapshot_disks=snapshot)
    assert fake.look()[:2] == before[:2]
    assert fake.run_state == done.run_state == ("running" if state == "running" else "postmigrate")
    assert fake.snapshots == ([snapshot] if snapshot else [])
    assert ("cont" in fake.commands) == (state == "running")
    assert (done.figures.downtime_ms, done.figures.dirty_sync_count) == (7.0, 3)
    assert (done.figures.method, done.figures.channels) == ("zstd", 3)
    verify(out)
    assert [p.name for p in tmp_path.iterdir()] == ["vm.ram"]


def test_a_level_that_no_qemu_has_is_refused_before_anything_is_changed(fake, tmp_path):
    before = fake.look()
    with pytest.raises(UsageError, match=r"QEMU has no level 'auto'.* multifd relay --out zstd:level=auto"):
        capture(fake, tmp_path / "vm.ram", "zstd:level=auto")
    assert fake.look() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("then", "state"), [("cont", "running"), ("stop", "postmigrate"), ("quit", "quit")])
@pytest.mark.parametrize("before", ["running", "paused"])
def test_then(fake, tmp_path, then, state, before):
    fake.run_state = before
    assert capture(fake, tmp_path / "vm.ram", then=then).run_state == state
    assert fake.has_quit == (then == "quit")
    assert [p.name for p in tmp_path.iterdir()] == ["vm.ram"]


@pytest.mark.parametrize("kind", ["refused", "lost", "cancelled"])
def test_a_fault_at_any_command_leaves_everything_as_it_was(image, tmp_path, kind):
    """Refused, or with the connection, or together with a cancel: the first of each command of a capture."""
    for victim in commands_of_a_capture(image, tmp_path, snapshot_disks=SNAPSHOT):
        fake, out, canceller = FakeQemu(image), tmp_path / f"{kind}-{victim}.ram", multifd.Canceller()
        before = fake.look()

        def hook(command, number, fake=fake, victim=victim, canceller=canceller):
            if command == victim and not fake.commands[:-1].count(victim):
                if kind == "refused":
                    raise Refused(f"QEMU refused {command}: not today")
                if kind == "lost":
                    fake.is_lost = True
                    raise MonitorLost("gone")
                canceller.cancel()

        fake.hook = hook
        notes, has_failed = [], False
        try:
            capture(fake, out, snapshot_disks=SNAPSHOT, canceller=canceller)
        except (ControlError, Cancelled) as e:
            notes, has_failed = getattr(e, "__notes__", []), True
        fake.end()
        if out.exists():  # complete: only then may a snapshot of its disks stay
            verify(out)
            assert fake.look() == (*before[:3], (SNAPSHOT,)), victim
            assert not notes or "the file is complete" in notes[-1], (victim, notes)
        else:
            assert has_failed, victim
            assert fake.look() == before, victim
        assert not state_file(out).exists(), victim
        assert not out.with_name(f".{out.name}.multifd-part").exists(), victim


def test_what_cannot_be_put_back_is_remembered_and_recovered(fake, tmp_path):
    """As after SIGKILL: the monitor does not come back before another process looks."""
    out = tmp_path / "vm.ram"
    before = fake.look()

    def die(command, number):
        if fake.status == "pre-switchover" and fake.snapshots:
            fake.is_lost = True
            raise MonitorLost("gone")

    fake.hook, fake.reopen = die, lambda: None
    with pytest.raises(MonitorLost) as caught:
        capture(fake, out, snapshot_disks=SNAPSHOT)
    assert any("recover" in note for note in caught.value.__notes__)
    left = state_file(out)
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert fake.capabilities["multifd"]

    with pytest.raises(RamError, match="recover it first"):
        capture(FakeQemu(b""), out)
    socket = tmp_path / "qmp"
    left.write_text(json.dumps({**json.loads(left.read_text()), "monitor": {"qmp": str(socket)}}))
    fake.hook, fake.is_lost = (lambda command, number: None), False
    with serve(fake, socket):
        assert recover(out) == "running"
    assert fake.look() == before
    assert not left.exists()
    with pytest.raises(RamError, match="no capture was left"):
        recover(out)


def test_a_capture_that_is_at_work_is_not_recovered(fake, tmp_path):
    out, seen = tmp_path / "vm.ram", []

    def look(command, number):
        if command == "migrate":
            with pytest.raises(RamError, match="still at work") as caught:
                recover(out)
            seen.append(caught.value)

    fake.hook = look
    capture(fake, out)
    assert seen


@pytest.mark.parametrize("state", ["inmigrate", "postmigrate", "finish-migrate", "save-vm", "restore-vm", "colo"])
def test_a_guest_that_cannot_be_captured_is_left_alone(fake, tmp_path, state):
    fake.run_state = state
    before = fake.look()
    with pytest.raises(ControlError, match=state):
        capture(fake, tmp_path / "vm.ram")
    assert fake.look() == before
    assert not list(tmp_path.iterdir())


def test_another_migration_is_not_disturbed(fake, tmp_path):
    fake.status = "pre-switchover"
    with pytest.raises(ControlError, match="busy"):
        capture(fake, tmp_path / "vm.ram")
    assert fake.status == "pre-switchover"


def test_nothing_is_replaced(fake, tmp_path):
    out = tmp_path / "vm.ram"
    out.write_text("mine")
    with pytest.raises(RamError, match="exists"):
        capture(fake, out)
    assert (out.read_text(), fake.commands) == ("mine", [])


@pytest.mark.parametrize(
    ("driver", "snapshots", "words"), [("raw", [], "needs qcow2"), ("qcow2", [SNAPSHOT], "already")]
)
def test_a_snapshot_that_cannot_be_is_refused_before_anything_changes(fake, tmp_path, driver, snapshots, words):
    fake.driver, fake.snapshots = driver, snapshots
    before = fake.look()
    with pytest.raises(ControlError, match=words):
        capture(fake, tmp_path / "vm.ram", snapshot_disks=SNAPSHOT)
    assert fake.look() == before
    assert not [c for c in fake.commands if not c.startswith("query")]


def test_a_file_that_fails_after_qemu_completed(fake, tmp_path, monkeypatch):
    """The guest goes on, and nobody says that there is a file."""
    out, before = tmp_path / "vm.ram", fake.look()

    def full(self):
        raise RamError("no space left")

    monkeypatch.setattr("multifd.ram.part_file.PartFile.commit", full)
    with pytest.raises(RamError, match="no space left") as caught:
        capture(fake, out, snapshot_disks=SNAPSHOT)
    assert fake.look() == before
    assert not list(tmp_path.iterdir())
    assert any("there is no file" in note for note in caught.value.__notes__)


def test_a_folder_that_cannot_be_written(fake, tmp_path):
    before = fake.look()
    with pytest.raises(RamError):
        capture(fake, tmp_path / "missing" / "vm.ram")
    assert fake.look() == before


_LEFT = {
    "version": 1,
    "monitor": {"qmp": "/q"},
    "run_state": "running",
    "before": {"capabilities": {}, "parameters": {}},
}
_OTHER = [
    {"monitor": "/q"}, {"monitor": {"qmp": 1}}, {"run_state": None}, {"before": {"capabilities": [], "parameters": {}}},
    {"before": {"capabilities": {"multifd": "on"}, "parameters": {}}},
    {"before": {"capabilities": {}, "parameters": 1}}, {"disks": "d"}, {"disks": [1]}, {"snapshot": 1},
]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"version": 1}', '{"version": 2}', "no json", "[" * 100_000]
    + [json.dumps(_LEFT | other) for other in _OTHER],
    ids=lambda content: content[-40:],
)
def test_a_state_file_that_is_none(tmp_path, content):
    state_file(tmp_path / "vm.ram").write_text(content)
    with pytest.raises(RamError, match="not what a capture leaves"):
        recover(tmp_path / "vm.ram")


def test_a_state_file_that_cannot_be_removed_is_told(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = StateFile(folder / "vm.ram")
    file.create(State({"qmp": "/q"}, "running", Settings({}, {})))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(RamError, match="cannot be removed for good"):
        file.remove()
    file.remove()


def test_then_is_checked(fake, tmp_path):
    with pytest.raises(UsageError):
        capture(fake, tmp_path / "vm.ram", then="reboot")


class TestQmp:
    """The monitor on a socket."""

    def test_a_capture(self, fake, tmp_path):
        before = fake.look()
        with serve(fake, tmp_path / "qmp"), contextlib.closing(QmpMonitor(str(tmp_path / "qmp"))) as monitor:
            capture(monitor, tmp_path / "vm.ram", "zlib")
        assert fake.look() == before

    def test_a_connection_that_breaks_is_made_anew(self, fake, tmp_path):
        before, broken = fake.look(), []

        def hook(command, number):
            if command == "migrate" and not broken:
                broken.append(command)
                raise MonitorLost("gone")

        fake.hook = hook
        with (
            serve(fake, tmp_path / "qmp"),
            contextlib.closing(QmpMonitor(str(tmp_path / "qmp"))) as monitor,
            pytest.raises(MonitorLost, match="closed during migrate"),
        ):
            capture(monitor, tmp_path / "vm.ram")
        assert fake.look() == before

    @pytest.mark.parametrize("kind", ["missing", "file"])
    def test_no_socket(self, tmp_path, kind):
        if kind == "file":
            (tmp_path / "qmp").write_text("no socket")
        with pytest.raises(ControlError, match=r"cannot connect to QEMU's monitor there: \w"):
            QmpMonitor(str(tmp_path / "qmp"))

    def test_a_monitor_that_serves_another_client(self, tmp_path, monkeypatch):
        import socket

        monkeypatch.setattr("multifd.manage.monitor._GREETING_S", 0.2)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "qmp"))
            listener.listen()
            with pytest.raises(MonitorLost, match="one client at a time"):
                QmpMonitor(str(tmp_path / "qmp"))


class TestLibvirt:
    """Through a virsh of a few lines."""

    @pytest.fixture
    def virsh(self, tmp_path, monkeypatch):
        def make(script):
            folder = tmp_path / "bin"
            folder.mkdir()
            (folder / "virsh").write_text(f"#!/bin/sh\n{script}\n")
            (folder / "virsh").chmod(0o755)
            monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

        return make

    def test_arguments_reach_virsh_as_they_are(self, virsh, tmp_path):
        from multifd.manage.monitor import open_monitor

        said = tmp_path / "said"
        virsh(f'printf "%s\\n" "$@" >> {said}; echo \'{{"return": {{"status": "running"}}}}\'')
        monitor = open_monitor(libvirt="a; b $(c)", connect="qemu:///system")
        said.write_text("")
        monitor.execute("query-status")
        assert said.read_text().splitlines() == [
            "--connect", "qemu:///system", "--quiet", "qemu-monitor-command", "--domain", "a; b $(c)", "--cmd",
            '{"execute": "query-status", "arguments": {}}',
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("script", "error", "words"),
        [
            ("""echo '{"error": {"desc": "not now"}}'""", Refused, "not now"),
            ("echo what", MonitorLost, "expected QMP"),
            ("echo 'error: no such domain' >&2; exit 1", MonitorLost, "no such domain"),
        ],
    )
    def test_what_virsh_may_answer(self, virsh, script, error, words):
        from multifd.manage.monitor import open_monitor

        virsh(script)
        with pytest.raises(error, match=words):
            open_monitor(libvirt="vm")

    def test_no_virsh(self, monkeypatch, tmp_path):
        from multifd.manage.monitor import open_monitor

        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ControlError, match="virsh is missing"):
            open_monitor(libvirt="vm")


def test_errors_are_multifds_own():
    assert issubclass(MonitorLost, MultifdError)
    assert MonitorLost.exit_code == Refused.exit_code == 9
