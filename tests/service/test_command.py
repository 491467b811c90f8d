"""``multifd relay --config`` as a process: options, signals, statuses, what it prints; ``--metrics`` elsewhere."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import peer
import pytest
from click.testing import CliRunner
from routes import DEADLINE_S, Migration, is_refused, wait_for

from multifd.cli.main import main


class Service:
    """The command, with its log as JSON."""

    def __init__(self, cli, config, *options: object) -> None:
        self.command = cli("relay", "--config", config, "--log-format", "json", *options)
        self.events: list[dict[str, object]] = []

    def wait_for(self, event: str) -> dict[str, object]:
        """Read the log up to an event."""
        for line in self.command.process.stderr:
            assert line.startswith("{"), line
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"no {event} in {self.events}")

    def end(self, number: signal.Signals, status: int) -> str:
        """Its stdout, after a signal has ended it."""
        self.command.signal(number)
        return self.command.wait(status)[0]


@pytest.fixture
def config(tmp_path, destination):
    path = tmp_path / "relay.toml"
    path.write_text(f'[routes.a]\nlisten = "unix:{tmp_path}/in"\nto = "{destination.uri}"\n')
    return path


def scrape(uri: str, path: str) -> str:
    with urllib.request.urlopen(uri.replace("tcp:", "http://") + path, timeout=DEADLINE_S) as answer:
        return answer.read().decode()


def test_a_life(cli, config, destination, tmp_path):
    """A migration, new settings, refused settings, a drain with a migration under way; each told in a line."""
    service = Service(cli, config, "--metrics", "tcp:127.0.0.1:0", "--json")
    uri = str(service.wait_for("metrics")["uri"])
    assert service.wait_for("listening")["listen"] == f"unix:{tmp_path}/in"
    Migration(f"unix:{tmp_path}/in", destination).finish()
    began = service.wait_for("migration-began")
    ended = service.wait_for("migration-completed")
    assert (ended["route"], ended["migration"]) == ("a", began["migration"])
    assert ended["result"]["status"] == "completed"
    assert 'multifd_migrations_total{route="a",state="completed"} 1.0' in scrape(uri, "/metrics")
    assert json.loads(scrape(uri, "/health")) == {"state": "ready", "routes": {"a": "waiting"}}

    service.command.signal(signal.SIGHUP)
    service.wait_for("reloaded")
    good = config.read_text()
    config.write_text("x")
    service.command.signal(signal.SIGHUP)
    assert "the old settings stay" in str(service.wait_for("reload-refused")["message"])
    config.write_text(good)

    migration = Migration(f"unix:{tmp_path}/in", destination)
    service.wait_for("migration-began")
    service.command.signal(signal.SIGTERM)
    service.wait_for("draining")
    assert is_refused(f"unix:{tmp_path}/in")
    migration.finish()
    service.wait_for("migration-completed")
    service.wait_for("stopped")
    out, _ = service.command.wait(0)
    documents = [json.loads(line) for line in out.splitlines()]
    assert [(d["route"], d["status"]) for d in documents] == [("a", "completed")] * 2
    assert documents[0]["migration"] == ended["migration"]


@pytest.mark.parametrize(
    ("numbers", "timeout_s", "status"),
    [
        ([signal.SIGINT], 60, 130),
        ([signal.SIGTERM, signal.SIGTERM], 60, 143),
        ([signal.SIGTERM], 0.05, 143),
        ([signal.SIGTERM, signal.SIGINT], 60, 143),
    ],
)
def test_a_migration_that_is_cut_off(cli, config, destination, tmp_path, numbers, timeout_s, status):
    service = Service(cli, config, "--drain-timeout", timeout_s)
    service.wait_for("listening")
    migration = Migration(f"unix:{tmp_path}/in", destination)
    service.wait_for("migration-began")
    for number in numbers:
        service.command.signal(number)
        service.wait_for(
            "draining" if number == signal.SIGTERM and service.events[-1]["event"] != "draining" else "cancelling"
        )
    service.wait_for("migration-cancelled")
    service.command.wait(status)
    assert migration.is_closed()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_nothing_under_way(cli, config, number, status, tmp_path):
    service = Service(cli, config)
    service.wait_for("listening")
    service.end(number, status)
    assert not (tmp_path / "in").exists()


def test_the_log_as_text(cli, config, destination, tmp_path):
    command = cli("relay", "--config", config)
    assert command.process.stderr.readline() == (
        f"multifd: [a] listening on unix:{tmp_path}/in, on to {destination.uri}\n"
    )
    migration = Migration(f"unix:{tmp_path}/in", destination)
    assert re.fullmatch(r"multifd: \[a [0-9a-f]{12}\] a source has connected\n", command.process.stderr.readline())
    migration.break_off()
    line = command.process.stderr.readline()
    assert re.fullmatch(r"multifd: warning: \[a [0-9a-f]{12}\] migration failed: .* closed the connection.*\n", line), (
        line
    )
    command.signal(signal.SIGTERM)
    assert command.wait(0)[0] == ""


def test_strangers_are_told_with_their_route(cli, config, tmp_path):
    service = Service(cli, config)
    service.wait_for("listening")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{tmp_path}/in")
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        told = service.wait_for("stranger")
        assert told["route"] == "a"
    service.end(signal.SIGTERM, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "{config}", "unix:/x", "unix:/y"], "LISTEN_URI does not go with --config: say it in the file"),
        (["--config", "{config}", "--out", "zstd"], "--out does not go with --config: say it in the file"),
        (["--config", "{config}", "--once"], "--once does not go with --config"),
        (["unix:/x", "unix:/y", "--drain-timeout", "3"], "--drain-timeout needs --config"),
        (["unix:/x", "unix:/y", "--log-format", "json"], "--log-format needs --config"),
        (["unix:/x"], "expected LISTEN_URI and TO_URI, or --config FILE"),
        ([], "expected LISTEN_URI and TO_URI, or --config FILE"),
        (["--config", "{folder}/none.toml"], "cannot read {folder}/none.toml: No such file"),
        (["--config", "{config}", "--metrics", "9464"], "URI '9464': expected tcp:HOST:PORT"),
        (["--config", "{config}", "--log-format", "xml"], "'xml' is not one of"),
        (["--config", "{config}", "--drain-timeout", "0"], "expected seconds, above 0"),
    ],
)
def test_what_cannot_be_meant_is_one_line(config, tmp_path, arguments, words):
    arguments = [word.format(config=config, folder=tmp_path) for word in arguments]
    done = CliRunner().invoke(main, ["relay", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert words.format(config=config, folder=tmp_path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bad_file_is_one_line_and_status_2(config):
    config.write_text('[routes.a]\nlisten = "unix:/x"\n')
    done = CliRunner().invoke(main, ["relay", "--config", str(config)])
    assert (done.exit_code, done.stderr) == (2, f"multifd: error: {config}: route 'a': 'to' is missing\n")


def test_an_address_of_metrics_that_is_taken(config, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        uri = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        done = CliRunner().invoke(main, ["relay", "--config", str(config), "--metrics", uri])
    assert (done.exit_code, done.stderr.count("\n")) == (5, 1)
    assert f"cannot listen on {uri}" in done.stderr
    assert not (tmp_path / "in").exists()


def test_sockets_of_systemd(config, destination, tmp_path, cli):
    """As systemd starts it: descriptor 3, and the environment says whose and what it is."""
    config.write_text(f'[routes.a]\nlisten = "systemd:web"\nto = "{destination.uri}"\n')
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='web');"
        "os.execv(sys.executable, [sys.executable, '-m', 'multifd', *sys.argv[2:]])"
    )
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/web")
        sock.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(sock.fileno()), "relay", "--config", str(config), "--log-format", "json"],
            pass_fds=[sock.fileno()], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert json.loads(process.stderr.readline())["listen"] == f"unix:{tmp_path}/web"
            Migration(f"unix:{tmp_path}/web", destination).finish()
            while json.loads(process.stderr.readline())["event"] != "migration-completed":
                pass
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            process.communicate()
    assert (tmp_path / "web").exists()


class TestMetricsOfOneEnd:
    def test_a_relay_without_a_file(self, cli, destination, tmp_path):
        command = cli("relay", f"unix:{tmp_path}/in", destination.uri, "--metrics", "tcp:127.0.0.1:0", "--json")
        uri = command.process.stderr.readline().removeprefix("metrics on ").strip()
        command.listening()
        migration = Migration(f"unix:{tmp_path}/in", destination)
        wait_for(lambda: 'multifd_active_migrations{route="relay"} 1.0' in scrape(uri, "/metrics"))
        migration.finish()
        wait_for(lambda: 'multifd_migrations_total{route="relay",state="completed"} 1.0' in scrape(uri, "/metrics"))
        assert json.loads(scrape(uri, "/health")) == {"state": "ready"}
        assert json.loads(command.process.stdout.readline())["status"] == "completed"
        command.signal(signal.SIGTERM)
        command.wait(143)

    def test_a_receiver(self, cli, tmp_path):
        """While it waits, and while a migration is under way."""
        command = cli(
            "receive", f"unix:{tmp_path}/in", tmp_path / "out", "--format", "raw", "--metrics", "tcp:127.0.0.1:0"
        )
        uri = command.process.stderr.readline().removeprefix("metrics on ").strip()
        command.listening()
        assert 'multifd_received_bytes_total{route="receive"} 0.0' in scrape(uri, "/metrics")
        stream = peer.main_stream([(b"ram", 64 * peer.PAGE)])
        socks = []
        for first in (stream["header"] + stream["setup"], peer.init(0) + peer.sync(), peer.init(1) + peer.sync()):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(f"{tmp_path}/in")
            sock.sendall(first)
            socks.append(sock)
        wait_for(lambda: 'multifd_active_migrations{route="receive"} 1.0' in scrape(uri, "/metrics"))
        moved = len(stream["header"] + stream["setup"]) + 2 * (64 + 1344)
        wait_for(lambda: f'multifd_received_bytes_total{{route="receive"}} {moved:.1f}' in scrape(uri, "/metrics"))
        for sock in socks:
            sock.close()
        command.wait(5)
