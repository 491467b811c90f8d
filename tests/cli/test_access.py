"""Who may connect, by the commands: warnings on stderr, options, and a socket that was handed over."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
from ends import wait_for_uri

import multifd
from multifd.errors import ChannelError, OutcomeUnknown


def address(uri: str) -> str:
    """Where this process reaches who listens everywhere."""
    return f"tcp:127.0.0.1:{uri.rpartition(':')[2]}"


@pytest.mark.parametrize(("host", "count"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
def test_receive_warns_once_that_memory_arrives_in_the_clear(cli, image, tmp_path, host, count):
    log = tmp_path / "log"
    with log.open("w") as stderr:
        end = cli("receive", f"tcp:{host}:0", tmp_path / "out.ram", "--format", "raw", stderr=stderr)
    multifd.send(image, address(wait_for_uri(log)))
    end.wait()
    assert log.read_text().count("in the clear") == count


def test_relay_warns_once_however_many_migrations_pass(cli, receiver, image, tmp_path):
    into = [bytearray(len(image)) for _ in range(2)]
    first = receiver(into[0])
    log = tmp_path / "log"
    with log.open("w") as stderr:
        between = cli("relay", "tcp:0.0.0.0:0", first.uri, "--json", stderr=stderr)
    uri = wait_for_uri(log)
    multifd.send(image, address(uri))
    first.join()
    assert between.process.stdout.readline()
    second = receiver(into[1], first.uri)
    multifd.send(image, address(uri))
    second.join()
    assert between.process.stdout.readline()
    between.process.terminate()
    between.wait(143)
    assert log.read_text().count("in the clear") == 1


def test_allow_keeps_all_others_out(cli, image, tmp_path):
    log = tmp_path / "log"
    allow = ("--allow", "192.0.2.0/28", "--timeout", "2")
    with log.open("w") as stderr:
        end = cli("receive", "tcp:127.0.0.1:0", tmp_path / "out.ram", *allow, stderr=stderr)
    with pytest.raises((ChannelError, OutcomeUnknown)):
        multifd.send(image, wait_for_uri(log))
    end.wait(5)
    err = log.read_text()
    assert "closed: a client at 127.0.0.1: only 192.0.2.0/28 may connect here" in err  # at once
    assert "(the last was a client at 127.0.0.1: only 192.0.2.0/28 may connect here)" in err  # at the end


def test_allow_lets_in_who_is_named(cli, image, tmp_path):
    allow = ("--allow", "::1", "--allow", "127.0.0.0/8")
    end = cli("receive", "tcp:127.0.0.1:0", tmp_path / "out.ram", "--format", "raw", *allow)
    multifd.send(image, end.listening())
    end.wait()
    assert (tmp_path / "out.ram").read_bytes() == image


def mode_of(uri: str) -> int:
    return stat.S_IMODE(Path(uri.removeprefix("unix:")).stat().st_mode)


@pytest.mark.parametrize(
    ("words", "mode"),
    [((), 0o600), (("--allow-uid", "65534", "--socket-mode", "666"), 0o666)],
)
@pytest.mark.parametrize("command", ["receive", "relay"])
def test_a_unix_socket_is_its_owners_unless_it_is_said_whose(cli, tmp_path, command, words, mode):
    other = tmp_path / "out.ram" if command == "receive" else f"unix:{tmp_path}/nobody"
    listening = cli(command, f"unix:{tmp_path}/sock", other, *words)
    assert mode_of(listening.listening()) == mode
    listening.process.terminate()
    listening.wait(143)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("tcp:127.0.0.1:0", "--allow-uid", "5"), "--allow-uid"),
        (("tcp:127.0.0.1:0", "--socket-mode", "600"), "--socket-mode"),
        (("unix:{}/sock", "--allow", "10.0.0.0/8"), "--allow"),
        (("unix:{}/sock", "--socket-mode", "660"), "--socket-mode"),
        (("unix:{}/sock", "--socket-group", "0"), "--socket-group"),
        (("unix:{}/sock", "--allow-uid", "65534"), "--allow-uid"),
    ],
)
@pytest.mark.parametrize("command", ["receive", "relay"])
def test_what_does_not_go_together_is_one_line_that_names_the_option(cli, tmp_path, command, words, option):
    at, *options = (word.format(tmp_path) for word in words)
    other = tmp_path / "out.ram" if command == "receive" else f"unix:{tmp_path}/nobody"
    _, err = cli(command, at, other, *options).wait(2)
    assert err.endswith(f"({option})\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "sock").exists()


@pytest.mark.parametrize("command", ["receive", "relay"])
def test_a_listening_socket_that_was_handed_over(cli, receiver, image, tmp_path, command):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number, port = listening.fileno(), listening.getsockname()[1]
        if command == "receive":
            words: tuple[object, ...] = (tmp_path / "out.ram", "--format", "raw")
        else:
            end = receiver(tmp_path / "out.ram")
            words = (end.uri, "--once")
        process = cli(command, f"fd:{number}", *words, pass_fds=[number])
        assert process.listening() == f"tcp:127.0.0.1:{port}"
    multifd.send(image, f"tcp:127.0.0.1:{port}")
    process.wait()
    if command == "relay":
        end.join()
    assert (tmp_path / "out.ram").read_bytes() == image


@pytest.mark.parametrize("command", ["send", "receive", "relay"])
def test_a_descriptor_that_is_none_is_one_line(cli, image_path, tmp_path, command):
    words = {
        "send": ("send", image_path, "fd:77,78,79"),
        "receive": ("receive", "fd:77", tmp_path / "out.ram"),
        "relay": ("relay", "fd:77", f"unix:{tmp_path}/nobody"),
    }[command]
    _, err = cli(*words).wait(2)
    assert "descriptor 77: Bad file descriptor" in err
