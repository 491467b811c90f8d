"""Fleets: what is handed out, what comes back, and a real cluster of processes, one of which is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fleet_tasks
import pytest
from conftest import DEADLINE_S, make_image

import multifd
from multifd.bench import cluster, fetch, fleet, host, schema, worker
from multifd.bench.campaign import Evidence, plan
from multifd.bench.fleet import Fleet, gather, run
from multifd.bench.job import Figures, Row, SourceSpec
from multifd.bench.report.group import grouped
from multifd.bench.worker import Outcome, Task
from multifd.errors import ChannelError, RamError, UsageError
from multifd.ram.image import open_source

NOWHERE = SourceSpec("nowhere", "/nowhere")


@pytest.fixture(autouse=True)
def another_host(tmp_path, monkeypatch):
    """The lock of a host lies in its temporary folder: here each test has its own, and its processes have, too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def threads():
    """A fleet of two threads of this process."""
    with ThreadPoolExecutor(2) as pool:
        yield Fleet(pool, lambda: 2)


@pytest.fixture
def measured(monkeypatch):
    """Jobs that were measured, none of them really."""
    jobs = []
    ones = Figures(**dict.fromkeys(Figures.__dataclass_fields__, 1))

    def measure_one(job):
        jobs.append(job)
        return Row(
            job.source.id, job.method, job.channels, job.link_bits_per_s, "vm", job.run, "2026-01-01T00:00:00+00:00",
            "verified", figures=ones,
        )  # fmt: skip

    monkeypatch.setattr(worker, "measure_one", measure_one)
    return jobs


@pytest.fixture
def ram(tmp_path):
    """A small image, and its path."""
    path = tmp_path / "guest.ram"
    path.write_bytes(make_image(256))
    return path


# -- what a fleet does, whatever it runs on -----------------------------------------------------------------


def test_every_combination_of_a_round_is_measured_on_one_host_and_comes_back_once(threads, ram, measured):
    jobs = plan([SourceSpec("a", str(ram)), SourceSpec("b", str(ram))], ["none", "zstd"], (1, 2), runs=2)
    evidence, told = Evidence(["bench"]), []
    gather(jobs, evidence, threads, told.append)
    document = evidence.document()
    schema.check(document)
    assert document["status"] == "completed"
    assert Counter((r.source, r.method, r.channels, r.run) for r in evidence.runs) == dict.fromkeys(
        ((j.source.id, j.method, j.channels, j.run) for j in jobs), 1
    )
    assert told == evidence.runs
    assert [source["id"] for source in document["sources"]] == ["a", "b"]
    assert len(document["machines"]) == 1
    assert {(rate["source"], rate["method"]) for rate in document["codec"]} == {("a", "zstd"), ("b", "zstd")}
    assert len(grouped([document])) == 2


def test_a_host_has_one_task_at_a_time(threads, tmp_path):
    tasks = [Task(fleet_tasks.overlap, NOWHERE, (str(tmp_path),)) for _ in range(8)]
    assert [outcome.value for _, outcome in run(tasks, threads)] == [0] * 8


def test_the_lock_of_a_host_has_a_deadline():
    with host.alone(), pytest.raises(ChannelError, match="another measurement"), host.alone(wait_s=0.01):
        pass
    with host.alone(wait_s=0.01):
        pass


def test_sources_that_cannot_be_read_are_all_named_before_anything_is_measured(threads, ram, tmp_path):
    missing = [SourceSpec(name, str(tmp_path / name)) for name in ("one", "two")]
    evidence = Evidence()
    with pytest.raises(RamError, match=r"2 of 3 sources cannot be read: (one.*two|two.*one)"):
        gather(plan([SourceSpec("a", str(ram)), *missing], ["none"]), evidence, threads)
    assert not evidence.runs


def test_a_relative_path_is_refused(threads):
    with pytest.raises(UsageError, match="absolute path or a URL"):
        gather(plan([SourceSpec("a", "guest.ram")], ["none"]), Evidence(), threads)


def test_a_worker_of_another_version_says_so():
    outcome = worker.perform(Task(fleet_tasks.overlap, NOWHERE, ("",)), "0.0.0.dev1")
    assert outcome.value is None
    assert "expected 0.0.0.dev1" in outcome.error


def test_what_the_executor_raises_is_a_failed_row_without_a_machine(ram):
    class Lossy(Executor):
        """Describes sources, and loses every round."""

        def submit(self, function, task, *rest):
            future = Future()
            if task.arguments:
                future.set_exception(RuntimeError("the worker died"))
            else:
                future.set_result(function(task, *rest))
            return future

    evidence = Evidence()
    gather(plan([SourceSpec("a", str(ram))], ["none"], runs=2), evidence, Fleet(Lossy(), lambda: 1))
    assert [(r.status, r.machine, r.error) for r in evidence.runs] == [
        ("failed", "", "RuntimeError: the worker died")
    ] * 2
    schema.check(evidence.document())


def test_machines_that_share_a_name_are_told_apart():
    machines: list[dict] = []
    one, two = {"id": "vm", "cpu": "a"}, {"id": "vm", "cpu": "b"}
    names = [fleet._name(described, machines) for described in (one, two, one, two)]
    assert names == ["vm", "vm (2)", "vm", "vm (2)"]
    assert [m["id"] for m in machines] == ["vm", "vm (2)"]


def test_a_fleet_without_workers_is_given_up():
    class Empty(Executor):
        def submit(self, function, *rest):
            return Future()

    task = Task(fleet_tasks.overlap, NOWHERE)
    assert list(run([task], Fleet(Empty(), lambda: 0), deserted_s=0.0)) == [(task, Outcome(error="no worker for 0 s"))]


def test_who_leaves_drops_what_has_not_begun(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        tasks = [Task(fleet_tasks.hold, NOWHERE, (str(tmp_path), number)) for number in range(50)]
        (tmp_path / "go").touch()
        with contextlib.closing(run(tasks, Fleet(pool, lambda: 1))) as outcomes:
            next(outcomes)
    assert len(list(tmp_path.glob("begun-*"))) < 50


# -- sources that lie elsewhere -----------------------------------------------------------------------------


@pytest.fixture
def store():
    """A store of fsspec's in the memory of this process."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()


def test_stored_streams_are_unpacked_once_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "vm.raw").write_bytes(bytes(range(256)) * 64)
    streams = f"dir:{tmp_path}/streams"
    multifd.send(tmp_path / "vm.raw", streams, "zlib")
    with fetch.fetched(streams) as path, fetch.fetched(streams) as again:
        assert Path(path).stat().st_ino == Path(again).stat().st_ino
        with contextlib.closing(open_source(path)) as source:
            assert [block.used_length for block in source.blocks] == [16384]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_url_is_measured_as_a_file_is_and_fetched_once(store, threads, monkeypatch, measured):
    store.pipe("/images/guest.ram", make_image(256))
    opened = []
    monkeypatch.setattr(fetch, "_copy", lambda *place, copy=fetch._copy: opened.append(place) or copy(*place))
    evidence = Evidence()
    url = "memory://images/guest.ram"
    gather(plan([SourceSpec(url, url)], ["none", "zstd"], runs=2), evidence, threads)
    document = evidence.document()
    assert document["status"] == "completed"
    assert {run["source"] for run in document["runs"]} == {source["id"] for source in document["sources"]} == {url}
    assert len(opened) == 1
    assert {job.source.path.split("/")[1] for job in measured} == {"proc"}


def test_a_copy_is_sparse_equal_and_follows_the_original(store):
    content = bytes(5 << 20) + make_image(16) + bytes(3 << 20)
    store.pipe("/a", content)
    with fetch.fetched("memory://a") as path, fetch.fetched("memory://a") as again:
        assert Path(path).read_bytes() == Path(again).read_bytes() == content
        assert os.stat(path).st_blocks * 512 < 3 << 20
        store.pipe("/a", b"other")
        with fetch.fetched("memory://a") as newer:
            assert Path(newer).read_bytes() == b"other"
        assert Path(path).read_bytes() == content


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("memory://nothing", RamError, "memory://nothing: FileNotFoundError"),
        ("no-such-scheme://x", UsageError, "no-such-scheme"),
    ],
)
def test_a_url_that_leads_nowhere_is_a_line(store, url, error, words):
    with pytest.raises(error, match=words), fetch.fetched(url):
        pass


def test_no_room_for_a_copy_is_said_before_it_is_made(store, monkeypatch):
    store.pipe("/a", bytes(100))
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(RamError, match=r"/a: 100 bytes, .* has room for 10: set TMPDIR"), fetch.fetched("memory://a"):
        pass


# -- a cluster ----------------------------------------------------------------------------------------------


class Cluster:
    """A dask scheduler and workers, each a process of its own; a context manager."""

    def __init__(self, folder, workers):
        self.address = ""
        self._folder, self._processes = folder, []
        self._workers = workers

    def __enter__(self):
        file = self._folder / "scheduler.json"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
        until(lambda: file.exists() and file.read_text().endswith("}"), "the scheduler")
        self.address = json.loads(file.read_text())["address"]
        for _ in range(self._workers):
            self.add_worker()
        return self

    def __exit__(self, *exc_info):
        for process in reversed(self._processes):
            process.kill()
            process.wait(DEADLINE_S)

    def add_worker(self):
        options = ("--nthreads", "2", "--no-nanny", "--no-dashboard", "--local-directory", self._folder)
        self._start("worker", self.address, *options)

    def kill_scheduler(self):
        self._processes[0].kill()
        self._processes[0].wait(DEADLINE_S)

    def _start(self, what, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(Path(fleet_tasks.__file__).parent)}
        log = (self._folder / f"{what}-{len(self._processes)}.log").open("w")
        with log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self._folder
            )
        self._processes.append(process)


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


@pytest.fixture
def dask(tmp_path):
    """Start clusters; skips without dask.distributed."""
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    with contextlib.ExitStack() as stack:
        yield lambda workers: stack.enter_context(Cluster(tmp_path, workers))


def test_a_worker_is_killed_half_way_and_each_task_is_done_once(dask, tmp_path):
    there = dask(2)
    tasks = [Task(fleet_tasks.hold, NOWHERE, (str(tmp_path), number)) for number in range(6)]
    killed = []

    def kill():
        until(lambda: list(tmp_path.glob("begun-*")), "the first task")
        killed.append(int(next(tmp_path.glob("begun-*")).name.split("-")[2]))
        os.kill(killed[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    with cluster.connected(f"dask:{there.address}", DEADLINE_S) as workers:
        until(lambda: workers.count() == 2, "both workers")
        found = list(run(tasks, workers))
    killer.join(DEADLINE_S)
    assert sorted(outcome.value[0] for _, outcome in found) == list(range(6))
    assert not [outcome.error for _, outcome in found if outcome.error]
    assert killed[0] not in {outcome.value[1] for _, outcome in found}


def test_the_command_measures_on_a_cluster_and_reports(dask, cli, ram, tmp_path):
    there = dask(2)
    out = tmp_path / "r.json"
    cli(
        "bench", ram, "--method", "none", "--method", "zstd", "--runs", "2", "--executor", f"dask:{there.address}",
        "--json", out, "--report", tmp_path / "r.html",
    ).wait()  # fmt: skip
    document = schema.read(out)
    assert document["status"] == "completed"
    assert sorted((run["method"], run["run"]) for run in document["runs"]) == [
        ("none", 1), ("none", 2), ("zstd", 1), ("zstd", 2),
    ]  # fmt: skip
    assert [machine["id"] for machine in document["machines"]] == [document["runs"][0]["machine"]]
    assert str(ram) in (tmp_path / "r.html").read_text()


def test_a_scheduler_that_dies_leaves_failed_rows_and_no_hang(dask, tmp_path):
    there = dask(1)
    tasks = [Task(fleet_tasks.hold, NOWHERE, (str(tmp_path), number)) for number in range(2)]
    with cluster.connected(f"dask:{there.address}", DEADLINE_S) as workers:
        outcomes = run(tasks, workers, deserted_s=1.0)
        (tmp_path / "go").touch()
        found = [next(outcomes)]
        there.kill_scheduler()
        found += outcomes
    assert sorted(task.arguments[1] for task, _ in found) == [0, 1]


@pytest.mark.parametrize("executor", ["", "dask:", "dask:nowhere", "processes:4", "tcp://127.0.0.1:1"])
def test_an_executor_that_cannot_be_meant_is_refused(executor, cli, ram):
    _, err = cli("bench", ram, "--executor", executor).wait(status=2)
    assert "expected dask:tcp://SCHEDULER:8786" in err


def test_a_scheduler_that_is_not_there_is_a_line():
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    with pytest.raises(ChannelError, match="no dask scheduler"), cluster.connected("dask:tcp://127.0.0.1:1", 0.5):
        pass


def test_a_cluster_without_workers_is_a_line(dask):
    there = dask(0)
    with pytest.raises(ChannelError, match="has no worker"), cluster.connected(f"dask:{there.address}", 2.0):
        pass
