"""Routes side by side: what fails in one stays there; drain, cancel, new settings."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from uuid import UUID

import peer
import pytest
from peer import Destination, is_closed
from routes import DEADLINE_S, Migration, is_refused, wait_for

import multifd
from multifd.errors import ChannelError, UsageError
from multifd.service.service import Request


def route(name: str, listen: str, to: str, **more: object) -> str:
    lines = [
        f"{key.replace('_', '-')} = {f'{value!r}' if isinstance(value, str) else value}" for key, value in more.items()
    ]
    return "\n".join([f"[routes.{name}]", f'listen = "{listen}"', f'to = "{to}"', *lines, ""])


def test_one_migration_after_another_on_every_route(serve, receiver, image, tmp_path):
    ends = {name: f"unix:{tmp_path}/{name}.out" for name in ("a", "b")}
    service = serve("".join(route(name, f"unix:{tmp_path}/{name}.in", to, out="zstd") for name, to in ends.items()))
    for turn in range(3):
        for name, to in ends.items():
            memory = bytearray(len(image))
            end = receiver(memory, uri=to)
            multifd.send(image, service.uri(name), "zlib", channels=2)
            end.join()
            assert memory == image
            wait_for(lambda name=name, turn=turn: sum(e.route == name for e in service.ended) == turn + 1)
    assert {e.result.status for e in service.ended} == {"completed"}
    assert len({e.migration for e in service.ended}) == 6
    for name in ends:
        assert service.sample("multifd_migrations_total", route=name, state="completed") == 3
        assert service.sample("multifd_migration_duration_seconds_count", route=name) == 3
        mine = [e.result for e in service.ended if e.route == name]
        assert service.sample("multifd_received_bytes_total", route=name) == sum(r.bytes_in for r in mine)
        assert service.sample("multifd_sent_bytes_total", route=name) == sum(r.bytes_out for r in mine)
        assert service.sample("multifd_pages_total", route=name, kind="normal") == sum(r.normal_pages for r in mine)
        assert service.sample("multifd_sync_points_total", route=name) == sum(r.sync_points for r in mine) > 0
    assert service.stop(Request.DRAIN)


def test_a_source_that_comes_between_two_migrations_is_served(serve, receiver, image, tmp_path):
    """The next one connects before the relay has told of the last one's end."""
    service = serve(route("a", f"unix:{tmp_path}/in", f"unix:{tmp_path}/out"))
    for _ in range(5):
        end = receiver(bytearray(len(image)), uri=f"unix:{tmp_path}/out")
        multifd.send(image, service.uri("a"))
        end.join()
    wait_for(lambda: len(service.ended) == 5)
    assert [e.result.status for e in service.ended] == ["completed"] * 5
    service.stop()


def test_a_route_that_fails_does_not_touch_another(serve, destination, tmp_path):
    other = Destination(tmp_path / "other.sock")
    service = serve(
        route("bad", "tcp:127.0.0.1:0", other.uri)
        + route("good", "tcp:127.0.0.1:0", destination.uri)
        + route("nobody", "tcp:127.0.0.1:0", f"unix:{tmp_path}/nobody", connect_timeout=0.2)
    )
    good = Migration(service.uri("good"), destination)
    bad = Migration(service.uri("bad"), other)
    bad.break_off()
    with pytest.raises(ChannelError), contextlib.closing(other):
        multifd.send(bytes(4096), service.uri("nobody"))
    wait_for(lambda: len(service.ended) == 2)
    assert {(e.route, e.result.status) for e in service.ended} == {("bad", "failed"), ("nobody", "failed")}
    assert service.state("good") == "active"
    assert service.sample("multifd_active_migrations", route="good") == 1
    good.finish()
    wait_for(lambda: len(service.ended) == 3)
    assert (service.ended[2].route, service.ended[2].result.status) == ("good", "completed")
    assert service.sample("multifd_migrations_total", route="bad", state="failed") == 1
    assert service.sample("multifd_migrations_total", route="good", state="failed") == 0


def test_a_defect_ends_one_migration(serve, receiver, image, tmp_path, monkeypatch):
    """Whatever an engine raises, the route goes on, and it is counted."""
    from multifd.engine.relay import Relay

    begin = Relay._begin
    broken = [True]

    def fail_once(self, main):
        begin(self, main)
        if broken:
            broken.pop()
            raise RuntimeError("a defect")

    monkeypatch.setattr(Relay, "_begin", fail_once)
    service = serve(route("a", f"unix:{tmp_path}/in", f"unix:{tmp_path}/out"))
    with pytest.raises(multifd.errors.MultifdError):
        multifd.send(image, service.uri("a"), timeout=20)
    wait_for(lambda: len(service.ended) == 1)
    assert (service.ended[0].result.status, service.ended[0].result.error) == ("failed", "a defect")
    end = receiver(bytearray(len(image)), uri=f"unix:{tmp_path}/out")
    multifd.send(image, service.uri("a"))
    end.join()
    wait_for(lambda: len(service.ended) == 2)
    assert service.sample("multifd_migrations_total", route="a", state="failed") == 1
    assert service.sample("multifd_migrations_total", route="a", state="completed") == 1
    service.stop()


def test_a_listener_that_breaks_is_opened_again(serve, destination, monkeypatch):
    monkeypatch.setattr("multifd.service.route._PAUSES_S", (0.01,))
    service = serve(route("a", "tcp:127.0.0.1:0", destination.uri))
    wait_for(lambda: service.sample("multifd_route_up", route="a") == 1)
    listener = service.service._routes["a"]._listener
    listener.sock.shutdown(socket.SHUT_RDWR)  # accept fails with EINVAL from here on
    wait_for(lambda: service.service._routes["a"]._listener not in (listener, None))
    Migration(service.uri("a"), destination).finish()
    wait_for(lambda: len(service.ended) == 1)
    assert service.ended[0].result.status == "completed"
    assert service.sample("multifd_route_up", route="a") == 1


def test_a_destination_that_takes_nothing_is_a_stall(serve, destination, tmp_path):
    """By far more than sockets hold; counted while it lasts."""
    service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
    migration = Migration(service.uri("a"), destination)
    packet = peer.packet([i * peer.PAGE for i in range(64)], bytes(64 * peer.PAGE))

    def send() -> None:
        with contextlib.suppress(OSError):
            for _ in range(256):
                migration.channel.sendall(packet)

    sender = threading.Thread(target=send)
    sender.start()
    wait_for(lambda: service.sample("multifd_channel_stalls_total", route="a"))
    for sock in destination.sockets:
        sock.close()
    wait_for(lambda: len(service.ended) == 1)
    sender.join(DEADLINE_S)
    assert not sender.is_alive()
    migration.break_off()
    assert service.ended[0].result.status == "failed"
    assert service.ended[0].result.stalls >= 1


GUEST, OTHER = b"A" * 16, b"B" * 16


class TestWhatAFailedMigrationLeavesBehind:
    """A channel of it that comes late, and whose end cannot be seen: it is full of pages that nobody reads."""

    def test_a_late_channel_is_not_the_next_migrations(self, serve, destination, tmp_path, monkeypatch):
        monkeypatch.setattr("multifd.engine.relay_muster._LATE_S", DEADLINE_S)
        monkeypatch.setattr("multifd.engine.relay_muster._ALONE_S", 10 * DEADLINE_S)
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        first = Migration(service.uri("a"), destination, GUEST)
        late = first.connect(peer.init(1, uuid=GUEST)[:60])
        for sock in destination.sockets:
            sock.close()
        assert first.main_is_closed()
        late.sendall(peer.init(1, uuid=GUEST)[60:] + peer.sync())
        assert is_closed(late)
        second = Migration(service.uri("a"), destination, OTHER)
        second.finish()
        wait_for(lambda: len(service.ended) == 2)
        assert [(e.result.status, e.result.channels) for e in service.ended] == [("failed", 1), ("completed", 1)]
        assert [e.result.rejected for e in service.ended] == [1, 0]
        assert service.sample("multifd_strangers_total", route="a") == 1
        assert [e.result.uuid.encode() for e in service.ended] == [
            str(UUID(bytes=guest)).encode() for guest in (GUEST, OTHER)
        ]
        first.break_off()

    def test_the_next_migration_may_be_the_same_guests(self, serve, destination, tmp_path, monkeypatch):
        """Its main comes first, and ends the time in which its channels would be turned away."""
        monkeypatch.setattr("multifd.engine.relay_muster._LATE_S", DEADLINE_S)
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        first = Migration(service.uri("a"), destination, GUEST)
        for sock in destination.sockets:
            sock.close()
        assert first.main_is_closed()
        Migration(service.uri("a"), destination, GUEST).finish()
        wait_for(lambda: len(service.ended) == 2)
        assert [e.result.status for e in service.ended] == ["failed", "completed"]
        first.break_off()

    def test_a_channel_without_a_main_is_not_kept(self, serve, destination, tmp_path, monkeypatch):
        monkeypatch.setattr("multifd.engine.relay_muster._ALONE_S", 0.1)
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        with socket.socket(socket.AF_UNIX) as alone:
            alone.settimeout(DEADLINE_S)
            alone.connect(f"{tmp_path}/in")
            alone.sendall(peer.init(0, uuid=GUEST) + peer.sync())
            assert is_closed(alone)
        Migration(service.uri("a"), destination, OTHER).finish()
        wait_for(lambda: len(service.ended) == 1)
        assert service.ended[0].result.status == "completed"
        assert service.sample("multifd_strangers_total", route="a") == 1

    def test_a_drain_does_not_wait_for_late_channels(self, serve, destination, tmp_path, monkeypatch):
        monkeypatch.setattr("multifd.engine.relay_muster._LATE_S", 3600)
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        first = Migration(service.uri("a"), destination, GUEST)
        wait_for(lambda: service.state("a") == "active")
        first.break_off()
        assert service.stop(Request.DRAIN)


class TestDrain:
    def test_idle_routes_refuse_and_a_migration_goes_on_to_its_end(self, serve, destination, tmp_path):
        service = serve(
            route("busy", f"unix:{tmp_path}/busy", destination.uri) + route("idle", "tcp:127.0.0.1:0", destination.uri)
        )
        idle = service.uri("idle")
        migration = Migration(service.uri("busy"), destination)
        wait_for(lambda: service.state("busy") == "active")
        service.ask(Request.DRAIN)
        wait_for(lambda: service.state("idle") == "over")
        assert is_refused(idle)
        assert service.service.health() == (
            False,
            {"state": "draining", "routes": {"busy": "draining", "idle": "over"}},
        )
        assert service.sample("multifd_draining") == 1
        assert is_refused(service.uri("busy"))  # another source, while one is served
        migration.finish()
        assert service.join()
        assert [e.result.status for e in service.ended] == ["completed"]
        assert is_refused(f"unix:{tmp_path}/busy")
        assert not (tmp_path / "busy").exists()

    def test_what_does_not_end_in_time_is_cancelled(self, serve, destination, tmp_path):
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri), drain_timeout_s=0.05)
        migration = Migration(service.uri("a"), destination)
        wait_for(lambda: service.state("a") == "active")
        assert not service.stop(Request.DRAIN)
        assert migration.is_closed()
        assert [e.result.status for e in service.ended] == ["cancelled"]
        assert service.sample("multifd_migrations_total", route="a", state="cancelled") == 1

    @pytest.mark.parametrize("again", [Request.DRAIN, Request.CANCEL])
    def test_a_second_request_cancels(self, serve, destination, tmp_path, again):
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        migration = Migration(service.uri("a"), destination)
        wait_for(lambda: service.state("a") == "active")
        service.ask(Request.DRAIN)
        assert not service.stop(again)
        assert migration.is_closed()

    def test_who_waits_in_the_backlog_is_no_migration(self, serve, destination, tmp_path):
        """Nothing is counted of a source that had not begun."""
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{tmp_path}/in")
            assert service.stop(Request.DRAIN)
        assert service.ended == []

    def test_settings_are_not_read_while_it_drains(self, serve, destination, tmp_path):
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))
        migration = Migration(service.uri("a"), destination)
        wait_for(lambda: service.state("a") == "active")
        service.ask(Request.DRAIN)
        service.ask(Request.RELOAD)
        wait_for(lambda: service.state("a") == "draining")
        migration.finish()
        assert service.join()
        assert service.sample("multifd_config_reloads_total", outcome="accepted") == 0


class TestReload:
    def accept(self, service, tmp_path, text: str, outcome: str = "accepted") -> None:
        before = service.sample("multifd_config_reloads_total", outcome=outcome)
        (tmp_path / "relay.toml").write_text(text)
        service.ask(Request.RELOAD)
        wait_for(lambda: service.sample("multifd_config_reloads_total", outcome=outcome) == before + 1)

    def test_an_idle_route_goes_by_the_new_settings_at_its_next_migration(self, serve, receiver, image, tmp_path):
        """And keeps its socket: a source that waits in its backlog is served."""
        listen = f"unix:{tmp_path}/in"
        service = serve(route("a", listen, f"unix:{tmp_path}/nobody", out="zlib"))
        inode = os.stat(tmp_path / "in").st_ino
        end = receiver(bytearray(len(image)), uri=f"unix:{tmp_path}/out", methods=["zstd"])
        self.accept(service, tmp_path, route("a", listen, end.uri, out="zstd", channels=3))
        multifd.send(image, listen, channels=3)
        end.join()
        wait_for(lambda: len(service.ended) == 1)
        result = service.ended[0].result
        assert (result.status, result.out_method, result.channels) == ("completed", "zstd", 3)
        assert os.stat(tmp_path / "in").st_ino == inode
        service.stop()

    def test_a_migration_that_is_under_way_goes_on_as_it_began(self, serve, destination, tmp_path):
        listen = f"unix:{tmp_path}/in"
        service = serve(route("a", listen, destination.uri))
        migration = Migration(listen, destination)
        wait_for(lambda: service.state("a") == "active")
        other = Destination(tmp_path / "other.sock")
        self.accept(service, tmp_path, route("a", listen, other.uri))
        migration.finish()
        wait_for(lambda: len(service.ended) == 1)
        second = Migration(listen, other)
        second.finish()
        wait_for(lambda: len(service.ended) == 2)
        assert [e.result.status for e in service.ended] == ["completed", "completed"]
        other.close()

    def test_routes_come_and_go(self, serve, destination, tmp_path):
        old, new = f"unix:{tmp_path}/old", f"unix:{tmp_path}/new"
        service = serve(route("old", old, destination.uri))
        migration = Migration(old, destination)
        wait_for(lambda: service.state("old") == "active")
        self.accept(service, tmp_path, route("new", new, destination.uri))
        assert list(service.service.uris) == ["new"]
        migration.finish()
        wait_for(lambda: len(service.ended) == 1)
        wait_for(lambda: not (tmp_path / "old").exists())
        Migration(new, destination).finish()
        wait_for(lambda: len(service.ended) == 2)
        assert [e.route for e in service.ended] == ["old", "new"]
        assert {e.result.status for e in service.ended} == {"completed"}

    def test_a_route_that_moves(self, serve, destination, tmp_path):
        service = serve(route("a", f"unix:{tmp_path}/old", destination.uri))
        self.accept(service, tmp_path, route("a", f"unix:{tmp_path}/new", destination.uri))
        wait_for(lambda: not (tmp_path / "old").exists())
        Migration(f"unix:{tmp_path}/new", destination).finish()
        wait_for(lambda: len(service.ended) == 1)
        wait_for(lambda: service.sample("multifd_route_up", route="a") == 1)

    def test_who_may_connect_changes_at_once(self, serve, destination, tmp_path):
        """And the socket stays; what would need another one is refused."""
        service = serve(route("a", "tcp:127.0.0.1:0", destination.uri, allow=["10.0.0.0/8"]))
        uri = service.uri("a")
        assert is_refused(uri)
        self.accept(service, tmp_path, route("a", "tcp:127.0.0.1:0", destination.uri, allow=["127.0.0.0/8"]))
        assert service.uri("a") == uri
        Migration(uri, destination).finish()
        wait_for(lambda: len(service.ended) == 1)
        assert service.ended[0].result.status == "completed"
        refused = route("a", "tcp:127.0.0.1:0", destination.uri, allow_uid=[7])
        self.accept(service, tmp_path, refused, "refused")
        Migration(uri, destination).finish()
        wait_for(lambda: len(service.ended) == 2)

    def test_the_file_of_a_socket_stays_as_it_is(self, serve, destination, tmp_path):
        listen = f"unix:{tmp_path}/in"
        service = serve(route("a", listen, destination.uri, allow_uid=[7], socket_mode="0666"))
        assert stat.S_IMODE(os.stat(tmp_path / "in").st_mode) == 0o666
        self.accept(service, tmp_path, route("a", listen, destination.uri, allow_uid=[8], socket_mode="0666"))
        self.accept(service, tmp_path, route("a", listen, destination.uri), "refused")
        assert stat.S_IMODE(os.stat(tmp_path / "in").st_mode) == 0o666

    @pytest.mark.parametrize("what", ["no TOML", "a bad value", "an address that is taken", "no file"])
    def test_what_cannot_be_meant_changes_nothing(self, serve, destination, tmp_path, what):
        listen = f"unix:{tmp_path}/in"
        service = serve(route("a", listen, destination.uri))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
            fine = route("fine", f"unix:{tmp_path}/fine", destination.uri)
            bad = {
                "no TOML": fine + "[",
                "a bad value": fine + route("b", f"unix:{tmp_path}/b", destination.uri, channels=0),
                "an address that is taken": fine + route("b", address, destination.uri),
                "no file": fine,
            }[what]
            if what == "no file":
                (tmp_path / "relay.toml").unlink()
                service.ask(Request.RELOAD)
                wait_for(lambda: service.sample("multifd_config_reloads_total", outcome="refused") == 1)
            else:
                self.accept(service, tmp_path, bad, "refused")
        assert list(service.service.uris) == ["a"]
        assert not (tmp_path / "fine").exists()
        assert service.sample("multifd_config_reloads_total", outcome="accepted") == 0
        Migration(listen, destination).finish()
        wait_for(lambda: len(service.ended) == 1)
        assert service.ended[0].result.status == "completed"


class TestStart:
    def test_an_address_that_is_taken_ends_the_start_and_leaves_nothing(self, tmp_path, serve, destination):
        before = set(os.listdir("/proc/self/fd"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            text = route("a", f"unix:{tmp_path}/a", destination.uri)
            text += route("b", f"tcp:127.0.0.1:{taken.getsockname()[1]}", destination.uri)
            with pytest.raises(
                ChannelError, match=r"relay.toml: route 'b': listen: cannot listen on tcp:127\.0\.0\.1:.*in use$"
            ):
                serve(text)
        assert not (tmp_path / "a").exists()
        assert set(os.listdir("/proc/self/fd")) == before

    def test_a_socket_that_nobody_hands_over(self, serve, destination):
        with pytest.raises(
            UsageError, match="route 'a': listen: systemd hands over no socket with FileDescriptorName=web"
        ):
            serve(route("a", "systemd:web", destination.uri))

    def test_sockets_of_systemd(self, serve, destination, tmp_path):
        """The file and the socket are systemd's, and stay."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{tmp_path}/web")
            sock.listen(64)
            service = serve(route("a", "systemd:web", destination.uri), handed={"web": sock})
            assert service.uri("a") == f"unix:{tmp_path}/web"
            Migration(service.uri("a"), destination).finish()
            wait_for(lambda: len(service.ended) == 1)
            assert service.stop(Request.DRAIN)
            assert (tmp_path / "web").exists()
            with socket.socket(socket.AF_UNIX) as waits:
                waits.settimeout(60)
                waits.connect(f"{tmp_path}/web")  # in systemd's backlog, until the service is there again


def test_what_systemd_is_told(serve, destination, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"{tmp_path}/notify")
        told.settimeout(60)

        def next_but(*words: str) -> str:
            while (message := told.recv(4096).decode()) in words:
                pass
            return message

        environment = {"NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "60000000"}
        service = serve(route("a", f"unix:{tmp_path}/in", destination.uri), environment=environment)
        assert next_but() == "READY=1\nSTATUS=1 routes, 0 migrations under way"
        assert next_but() == "WATCHDOG=1"
        service.ask(Request.RELOAD)
        assert next_but("WATCHDOG=1").startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert next_but("WATCHDOG=1").startswith("READY=1\n")
        service.ask(Request.DRAIN)
        assert next_but("WATCHDOG=1").startswith("STOPPING=1\nSTATUS=draining: 0 migrations")
        service.join()


def test_a_route_that_hangs_withholds_the_watchdog_unless_another_has_a_migration(
    serve, destination, tmp_path, monkeypatch
):
    service = serve(
        route("a", f"unix:{tmp_path}/a", destination.uri) + route("b", f"unix:{tmp_path}/b", destination.uri)
    )
    migration = Migration(service.uri("b"), destination)
    wait_for(lambda: service.state("b") == "active")
    relay = service.service
    monkeypatch.setattr(relay._routes["a"], "_progress", lambda result: None)
    stuck = type("Stuck", (type(relay._routes["a"]),), {"state": "stuck"})
    relay._routes["a"].__class__ = stuck
    assert relay._is_alive()
    migration.finish()
    wait_for(lambda: service.state("b") == "waiting")
    assert not relay._is_alive()
    assert relay.health() == (True, {"state": "degraded", "routes": {"a": "stuck", "b": "waiting"}})


def test_nothing_grows_over_migrations_that_break_off(serve, destination, tmp_path):
    """Threads and descriptors are as before, whatever becomes of a migration."""
    service = serve(route("a", f"unix:{tmp_path}/in", destination.uri))

    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def one(turn: int) -> None:
        migration = Migration(service.uri("a"), destination)
        if turn % 2:
            migration.break_off()
        else:
            migration.finish()
        for sock in destination.sockets:
            sock.close()
        destination.sockets.clear()
        migration.break_off()
        wait_for(lambda: len(service.ended) == turn + 1)
        wait_for(lambda: service.state("a") == "waiting")

    one(0)
    before = held()
    for turn in range(1, 9):
        one(turn)
    # What the first one had may not all have been gone yet when it was counted.
    wait_for(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    assert [e.result.status for e in service.ended] == ["completed", "failed"] * 4 + ["completed"]
