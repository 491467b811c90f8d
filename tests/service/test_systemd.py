"""What systemd hears and hands over; and its own judgement of the units."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import multifd.service
from multifd.errors import ChannelError, UsageError
from multifd.service.systemd import Notifier, listening
from multifd.transport.access import Access
from multifd.transport.listen import Listener

SHARE = Path(multifd.service.__file__).parent / "share"
DEADLINE_S = 60
MOST_EXPOSED = 2.0  # "OK" up to 4.9 by systemd-analyze(1); ours is 1.4 with systemd 252


@pytest.fixture
def told(tmp_path):
    """A socket as systemd's, and what it is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(DEADLINE_S)
        yield str(tmp_path / "notify"), lambda: sock.recv(4096).decode()


def test_every_message(told):
    path, read = told
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 6
    notifier.ready("two\nlines")
    assert read() == "READY=1\nSTATUS=two lines"
    notifier.reloading()
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", read())
    notifier.stopping("ends")
    assert read() == "STOPPING=1\nSTATUS=ends"
    notifier.alive()
    assert read() == "WATCHDOG=1"


def test_an_abstract_address(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0multifd-test-{os.getpid()}")
        sock.settimeout(DEADLINE_S)
        Notifier({"NOTIFY_SOCKET": f"@multifd-test-{os.getpid()}"}).alive()
        assert sock.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "/no/such/socket"])
def test_nobody_listens(address):
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})
    notifier.ready("x")
    assert notifier.watchdog_s is None


@pytest.mark.parametrize("usec", ["", "0", "x", "-1"])
def test_no_watchdog(usec):
    assert Notifier({"WATCHDOG_USEC": usec}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_sockets_are_for_the_process_that_they_are_meant_for():
    for environment in (
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_PID": str(os.getpid())},
    ):
        assert listening(environment) == {}


def test_sockets_by_name():
    """In a process of its own, since they are descriptors 3 and up."""
    code = """
import os, socket
from multifd.service.systemd import listening
socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
numbers = [os.dup(sock.fileno()) for sock in socks]
ports = [sock.getsockname()[1] for sock in socks]
read_end = os.pipe()[0]
for fd, number in zip((3, 4, 5, 6), (*[os.dup2(n, 100 + n) for n in numbers], os.dup2(read_end, 200)), strict=True):
    os.dup2(number, fd)
found = listening({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "4", "LISTEN_FDNAMES": "web:db:web"})
assert {name: sock.getsockname()[1] for name, sock in found.items()} == {"web": ports[0], "db": ports[1]}, found
assert not any(sock.get_inheritable() for sock in found.values())
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)


class TestAdoptedListeners:
    def test_its_file_stays(self, tmp_path):
        """It is systemd's."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "s"))
            sock.listen()
            listener = Listener.adopt(sock.dup())
            assert (str(listener.uri), listener.is_local) == (f"unix:{tmp_path}/s", True)
            listener.close()
        assert (tmp_path / "s").exists()

    def test_tcp(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            listener = Listener.adopt(sock.dup())
            assert (listener.uri.port, listener.is_local) == (sock.getsockname()[1], False)
            listener.close()

    def test_an_abstract_name(self):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"\0multifd-adopt-{os.getpid()}")
            sock.listen()
            listener = Listener.adopt(sock.dup())
            assert (listener.uri.path, listener.is_local) == (f"@multifd-adopt-{os.getpid()}", True)
            listener.close()

    def test_who_may_connect(self, tmp_path):
        """Its file is not made here, so nothing is said of that."""
        with socket.socket(socket.AF_UNIX) as sock, socket.create_server(("127.0.0.1", 0)) as tcp:
            sock.bind(str(tmp_path / "s"))
            sock.listen()
            listener = Listener.adopt(sock.dup(), Access(uids=(7,)))
            assert listener.uri.path == f"{tmp_path}/s"
            listener.close()
            for where, access, setting in (
                (sock, Access(allow=("10.0.0.0/8",)), "allow"),
                (sock, Access(uids=(7,), socket_mode=0o660), "socket_mode"),
                (tcp, Access(uids=(7,)), "uids"),
            ):
                with pytest.raises(UsageError) as caught, where.dup() as copy:
                    Listener.adopt(copy, access)
                assert caught.value.setting == setting

    def test_what_does_not_listen(self):
        with socket.socket() as sock, pytest.raises(ChannelError, match=r"descriptor \d+ does not listen"):
            Listener.adopt(sock)
        with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ChannelError):
            Listener.adopt(sock)


@pytest.fixture
def analyze(tmp_path):
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")

    def run(*arguments: object) -> str:
        done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE_S)
        said = done.stdout + done.stderr
        if done.returncode and "multifd" not in said.replace(str(tmp_path), ""):
            pytest.skip(f"systemd-analyze does not work here: {said.strip()}")
        return said

    return run


@pytest.fixture
def units(tmp_path):
    """The units, with a program that is there."""
    service = (SHARE / "multifd-relay.service").read_text()
    assert service.count("ExecStart=/usr/local/bin/multifd ") == 1
    (tmp_path / "multifd-relay.service").write_text(service.replace("/usr/local/bin/multifd", sys.executable))
    shutil.copy(SHARE / "multifd-relay@.socket", tmp_path / "multifd-relay@web.socket")
    return [tmp_path / "multifd-relay.service", tmp_path / "multifd-relay@web.socket"]


def test_systemd_takes_the_units(analyze, units):
    said = analyze("verify", "--man=no", *units)
    ours = [line for line in said.splitlines() if "multifd" in line]
    assert ours == []


def test_systemd_finds_the_service_confined(analyze, units):
    said = analyze("security", "--offline=true", "--no-pager", units[0])
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= MOST_EXPOSED, said


def test_the_commands_of_the_units_exist():
    from multifd.cli.main import main

    line = re.search(r"^ExecStart=\S+ (.*)$", (SHARE / "multifd-relay.service").read_text(), re.MULTILINE)[1]
    command, *words = line.split()
    known = {option for param in main.commands[command].params for option in param.opts}
    assert {word for word in words if word.startswith("--")} <= known
