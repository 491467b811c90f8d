"""QEMU's figures, with the clock as an argument."""

from __future__ import annotations

import json

import pytest

from multifd.stats import MigrationStats

KEYS = [
    "status", "method", "channels", "total_time_ms", "setup_time_ms", "downtime_ms", "mbps", "pages_per_second",
    "normal_pages", "zero_pages", "transferred_bytes", "ram_bytes", "dirty_sync_count", "method_stats",
    "tracker", "tracker_reason", "rounds", "dirty_pages", "dirty_pages_rate", "expected_downtime_ms",
    "throttle_percent", "error", "notes",
]  # fmt: skip


def test_a_migration() -> None:
    stats = MigrationStats(100.0)
    one, two = stats.add_channel(), stats.add_channel()
    stats.setup_done(100.5)
    one.normal_pages, one.counters = 100, {"hits": 2, "misses": 1}
    two.zero_pages, two.counters = 50, {"hits": 3}
    stats.wire_bytes = 500_000
    stats.switchover(101.25)
    stats.finish(101.5, "completed")
    result = stats.snapshot(999.0)
    assert (result.status, result.channels, result.error) == ("completed", 2, None)
    assert (result.total_time_ms, result.setup_time_ms, result.downtime_ms) == (1500.0, 500.0, 250.0)
    assert result.transferred_bytes == 500_000
    assert result.mbps == pytest.approx(500_000 * 8 / 1.0 / 1e6)
    assert result.pages_per_second == 100  # 150 pages in the last window, 1.5 s
    assert (result.normal_pages, result.zero_pages) == (100, 50)
    assert result.method_stats == {"hits": 5, "misses": 1}


def test_windows() -> None:
    stats = MigrationStats(0.0)
    channel = stats.add_channel()
    channel.normal_pages, stats.wire_bytes = 10, 1_000_000
    assert not stats.tick(0.05)
    assert stats.snapshot(0.05).mbps == 0
    assert stats.tick(0.5)
    assert stats.snapshot(0.5).mbps == pytest.approx(16)
    assert stats.snapshot(0.5).pages_per_second == 20
    assert stats.tick(1.0)
    assert stats.snapshot(1.0).mbps == 0


def test_the_end_is_the_end() -> None:
    stats = MigrationStats(0.0)
    stats.finish(1.0, "failed", "why")
    stats.finish(2.0, "completed")
    assert not stats.tick(3.0)
    result = stats.snapshot(3.0)
    assert (result.status, result.error, result.total_time_ms) == ("failed", "why", 1000.0)
    assert result.setup_time_ms == 1000.0  # never got further
    assert result.mbps == 0


def test_snapshot_is_apart() -> None:
    stats = MigrationStats(0.0)
    channel = stats.add_channel()
    channel.counters["hits"] = 1
    before = stats.snapshot(0.1)
    channel.counters["hits"] = 2
    assert before.method_stats == {"hits": 1}


def test_json_keys() -> None:
    text = json.dumps(MigrationStats(0.0).snapshot(0.0).as_dict())
    assert list(json.loads(text)) == KEYS
