"""Metrics: names and text by Prometheus' own judgement, counters that only grow, and who speaks of them."""

from __future__ import annotations

import contextlib
import http.client
import importlib.resources
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from multifd.service.metrics import TABLE, Metrics
from multifd.service.scrape import ScrapeServer
from multifd.stats import RelayResult, Result
from multifd.transport.address import Uri
from multifd.transport.listen import Listener

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60
_SUFFIXES = ("_bucket", "_sum", "_count")


class Scraped:
    """A server of metrics, and what it says."""

    def __init__(self, uri: str = "tcp:127.0.0.1:0") -> None:
        self.metrics = Metrics()
        self.is_ready = True
        self.server = ScrapeServer(
            Listener(Uri.parse(uri)),
            self.metrics.registry,
            lambda: (self.is_ready, {"state": "ready" if self.is_ready else "draining"}),
        )

    def get(self, path: str, accept: str = "") -> str:
        url = self.server.uri.replace("tcp:", "http://") + path
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Accept": accept}), timeout=DEADLINE_S
        ) as answer:
            return answer.read().decode()

    def samples(self) -> dict[tuple[str, ...], float]:
        """Name and label values in the labels' order, to value."""
        families = text_string_to_metric_families(self.get("/metrics"))
        return {(s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for f in families for s in f.samples}


@pytest.fixture
def scraped():
    one = Scraped()
    yield one
    one.server.close()


def relayed(status: str, **figures: object) -> RelayResult:
    """Figures with everything in them."""
    default = {
        "in_method": "zlib", "out_method": "qpl", "channels": 2, "total_time_ms": 1500.0, "packets": 3,
        "normal_pages": 4, "zero_pages": 5, "bytes_in": 6, "bytes_out": 7, "sync_points": 8, "stalls": 9,
        "rejected": 10, "tls_failures": 13, "out_tls_failures": 14, "in_stats": {"a_n": 11}, "out_stats": {"a_n": 12},
    }  # fmt: skip
    return RelayResult(status, **{**default, **figures})


def test_every_figure_of_a_relay(scraped):
    scraped.metrics.meter("web").finish(relayed("completed"))
    samples = scraped.samples()
    assert {key: value for key, value in samples.items() if key[0].startswith("multifd_") and value} == {
        ("multifd_migrations_total", "web", "completed"): 1,
        **{("multifd_migration_duration_seconds_bucket", le, "web"): 1 for le in
           ("2.5", "5.0", "10.0", "30.0", "60.0", "120.0", "300.0", "600.0", "1800.0", "3600.0", "7200.0", "+Inf")},
        ("multifd_migration_duration_seconds_sum", "web"): 1.5,
        ("multifd_migration_duration_seconds_count", "web"): 1,
        ("multifd_packets_total", "web"): 3,
        ("multifd_pages_total", "normal", "web"): 4,
        ("multifd_pages_total", "zero", "web"): 5,
        ("multifd_received_bytes_total", "web"): 6,
        ("multifd_sent_bytes_total", "web"): 7,
        ("multifd_sync_points_total", "web"): 8,
        ("multifd_channel_stalls_total", "web"): 9,
        ("multifd_strangers_total", "web"): 10,
        ("multifd_tls_failures_total", "web", "in"): 13,
        ("multifd_tls_failures_total", "web", "out"): 14,
        ("multifd_method_figures_total", "a_n", "zlib", "web", "in"): 11,
        ("multifd_method_figures_total", "a_n", "qpl", "web", "out"): 12,
        ("multifd_build_info", samples_version(samples)): 1,
        ("multifd_config_last_reload_success_timestamp_seconds",): samples[
            ("multifd_config_last_reload_success_timestamp_seconds",)
        ],
    }  # fmt: skip


def samples_version(samples) -> str:
    return next(key[1] for key in samples if key[0] == "multifd_build_info")


def test_every_figure_of_a_receiver(scraped):
    meter = scraped.metrics.meter("receive")
    meter.update(Result("active", method="qpl", normal_pages=1, transferred_bytes=2, method_stats={"a_n": 3}))
    assert scraped.samples()["multifd_active_migrations", "receive"] == 1
    meter.finish(
        Result("failed", method="qpl", normal_pages=4, zero_pages=1, transferred_bytes=20, method_stats={"a_n": 3})
    )
    samples = scraped.samples()
    assert samples["multifd_active_migrations", "receive"] == 0
    assert samples["multifd_migrations_total", "receive", "failed"] == 1
    assert samples["multifd_pages_total", "normal", "receive"] == 4
    assert samples["multifd_received_bytes_total", "receive"] == 20
    assert samples["multifd_method_figures_total", "a_n", "qpl", "receive", "in"] == 3


def test_figures_of_several_migrations_add_up_and_never_fall(scraped):
    meter = scraped.metrics.meter("web")
    seen = []
    for status, bytes_in in (("waiting", 0), ("active", 5), ("active", 3), ("active", 9)):
        meter.update(relayed(status, bytes_in=bytes_in))
        seen.append(scraped.samples()["multifd_received_bytes_total", "web"])
    meter.finish(relayed("failed", bytes_in=10))
    meter.update(relayed("waiting", bytes_in=0, rejected=1))
    meter.forget()
    meter.finish(relayed("completed", bytes_in=7))
    seen.append(scraped.samples()["multifd_received_bytes_total", "web"])
    assert seen == [0, 5, 5, 9, 17]
    assert scraped.samples()["multifd_strangers_total", "web"] == 10 + 1 + 10


def test_two_routes_of_one_name_add_up(scraped):
    """One that ends, and the one that took its place."""
    old, new = scraped.metrics.meter("web"), scraped.metrics.meter("web")
    old.up(True)
    new.up(True)
    old.update(relayed("active"))
    new.update(relayed("active"))
    assert scraped.samples()["multifd_active_migrations", "web"] == 2
    old.finish(relayed("completed"))
    old.up(False)
    samples = scraped.samples()
    assert (samples["multifd_active_migrations", "web"], samples["multifd_route_up", "web"]) == (1, 1)
    assert samples["multifd_received_bytes_total", "web"] == 12


def test_every_state_is_there_before_it_happens(scraped):
    scraped.metrics.meter("web")
    samples = scraped.samples()
    for state in ("completed", "failed", "cancelled", "unknown"):
        assert samples["multifd_migrations_total", "web", state] == 0


def test_promtool_is_silent(scraped):
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    meter = scraped.metrics.meter("web")
    meter.finish(relayed("completed"))
    scraped.metrics.reloaded("accepted")
    text = scraped.get("/metrics")
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_openmetrics_is_served_to_who_asks_for_it(scraped):
    text = scraped.get("/metrics", "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize("version", ["1.0.\xff", "1", "x", "1.0.0.0", "", "1..0"])
def test_a_version_that_there_is_not_is_answered_all_the_same(scraped, version):
    assert "multifd_" in scraped.get("/metrics", accept=f"application/openmetrics-text;version={version};q=0.5")


def test_health(scraped):
    assert json.loads(scraped.get("/health")) == {"state": "ready"}
    scraped.is_ready = False
    with pytest.raises(urllib.error.HTTPError) as caught:
        scraped.get("/health?verbose=1")
    assert (caught.value.code, json.loads(caught.value.read())) == (503, {"state": "draining"})
    caught.value.close()


def test_other_paths_and_words(scraped):
    for path, method, code in (("/", "GET", 404), ("/metrics/x", "GET", 404), ("/metrics", "POST", 501)):
        url = scraped.server.uri.replace("tcp:", "http://") + path
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=DEADLINE_S)
        assert caught.value.code == code
        caught.value.close()


def test_silent_clients_are_in_nobodys_way(scraped):
    """A few that say nothing, and many that hang up at once."""
    address = ("127.0.0.1", int(scraped.server.uri.rpartition(":")[2]))
    silent = [socket.create_connection(address, DEADLINE_S) for _ in range(8)]
    for _ in range(100):
        socket.create_connection(address, DEADLINE_S).close()
    deadline = time.monotonic() + DEADLINE_S
    text = ""
    while not text and time.monotonic() < deadline:  # those that hung up may hold all places for a moment
        with contextlib.suppress(OSError, http.client.HTTPException):
            text = scraped.get("/metrics")
    assert "multifd_build_info" in text
    for sock in silent:
        sock.close()


def test_at_a_unix_socket(tmp_path):
    one = Scraped(f"unix:{tmp_path}/metrics")
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE_S)
            sock.connect(f"{tmp_path}/metrics")
            sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            assert json.loads(answer.read()) == {"state": "ready"}
    finally:
        one.server.close()
    assert not (tmp_path / "metrics").exists()


def test_without_the_package_it_says_what_to_install():
    code = """
import sys
sys.modules["prometheus_client"] = None
from multifd.cli.main import main
main(["relay", "unix:/nowhere/x", "unix:/nowhere/y", "--metrics", "tcp:127.0.0.1:0"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 2, done.stderr
    assert "metrics need the package prometheus_client: pip install 'multifd[metrics]' (--metrics)" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_is_not_imported_unless_it_is_asked_for():
    code = "import sys, multifd.cli.service; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)


def bare(name: str) -> str:
    """A metric's name without what a histogram adds."""
    for suffix in _SUFFIXES:
        if name.removesuffix(suffix) in TABLE:
            return name.removesuffix(suffix)
    return name


def names_in(text: str) -> set[str]:
    return {bare(name) for name in re.findall(r"\bmultifd_[a-z_]+", text)}


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are():
    dashboard = json.loads((importlib.resources.files("multifd.service") / "share/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"]]
    asked = set().union(*map(names_in, queries))
    assert asked == set(TABLE), "every metric has a panel, and every panel a metric"
    labels = {label for metric in TABLE.values() for label in metric.labels} | {"le", "job", "version"}
    for query in queries:
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", group)) <= labels, query
        assert query.count("(") == query.count(")"), query
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_promtool_takes_the_dashboards_queries(tmp_path):
    """As a file of rules, which is what it parses."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    dashboard = json.loads((importlib.resources.files("multifd.service") / "share/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:number:{i}", "expr": query.replace("$__rate_interval", "5m")}
        for i, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run([tool, "check", "rules", str(path)], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_lists_every_metric_as_it_is():
    rows = re.findall(r"^\| `(multifd_[a-z_]+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", page(), re.MULTILINE)
    told = {name: (kind, labels.strip(), help.strip()) for name, kind, labels, help in rows}
    assert told == {
        name: (metric.kind.lower(), ", ".join(f"`{label}`" for label in metric.labels) or "none", metric.help)
        for name, metric in TABLE.items()
    }


def test_the_page_speaks_of_no_other_metric():
    assert names_in(page()) <= set(TABLE)


def page() -> str:
    return (ROOT / "docs/relay-service.md").read_text()
