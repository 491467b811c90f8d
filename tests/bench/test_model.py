"""The arithmetic of an advice, and the search that uses it, on costs that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd import registry
from multifd.bench import advise, commands, model, schema, synthetic, trial
from multifd.bench.advise import Wish, _Search
from multifd.bench.campaign import opened
from multifd.bench.job import SourceSpec
from multifd.bench.measure import EndFailed
from multifd.bench.model import SHARED, TWO_HOSTS, Cost, Setting
from multifd.errors import MethodError, RamError, UsageError

GIGABIT = 10**9
PAGE = 4096
PLAIN = Cost("none", 1e9, 0.1, 0.2)
PACKED = Cost("zstd", 4e8, 2.0, 1.0)
TWO = Setting(GIGABIT, channels=2, cpus=2)


@pytest.mark.parametrize(
    ("cost", "setting", "seconds", "bound"),
    [
        (PLAIN, TWO, 8.0, "link"),
        (PACKED, TWO, 3.2, "link"),
        (PACKED, replace(TWO, link_bits_per_s=100e9), 1.5, "processors"),
        (PACKED, replace(TWO, link_bits_per_s=100e9, hosts=TWO_HOSTS), 1.0, "source"),
        (PACKED, Setting(100e9, channels=1, cpus=8, hosts=TWO_HOSTS), 2.0, "source"),
        (PACKED, Setting(100e9, channels=8, cpus=1, hosts=TWO_HOSTS), 2.0, "source"),
        (PACKED, Setting(100e9, channels=8, cpus=8, hosts=TWO_HOSTS), 0.25, "source"),
        (replace(PACKED, destination_cpu_s=4.0), Setting(100e9, 2, 8, TWO_HOSTS), 2.0, "destination"),
        (replace(PACKED, stretch=2.0, fixed_s=0.5), replace(TWO, link_bits_per_s=100e9), 3.5, "processors"),
    ],
)
def test_a_migration_takes_as_long_as_its_slowest_stage(cost, setting, seconds, bound):
    assert model.time_s(cost, setting) == pytest.approx(seconds)
    assert model.bound(cost, setting) == bound


def test_the_crossover_is_where_both_take_as_long():
    above = model.crossover_bits_per_s(PLAIN, [PACKED, replace(PACKED, source_cpu_s=9.0)], TWO)
    assert above == pytest.approx(8e9 / 1.5)
    for link, better in [(above * 1.01, PLAIN), (above / 1.01, PACKED)]:
        at = replace(TWO, link_bits_per_s=link)
        assert min(PLAIN, PACKED, key=lambda cost: model.time_s(cost, at)) is better


def test_there_need_not_be_a_crossover():
    assert model.crossover_bits_per_s(PLAIN, [replace(PACKED, wire_bytes=2e9)], TWO) == 0
    assert model.crossover_bits_per_s(PLAIN, [replace(PACKED, source_cpu_s=0.01, destination_cpu_s=0.01)], TWO) is None


def test_channels_that_fill_a_link():
    assert model.filling_channels(PACKED, replace(TWO, link_bits_per_s=10e9)) == 7  # 2 s of source in 0.32 s
    assert model.filling_channels(PLAIN, TWO) == 1


costs = st.builds(Cost, st.just("x"), *[st.floats(1, 1e12) for _ in range(3)], st.floats(0, 10), st.floats(1, 10))
settings_ = st.builds(Setting, st.floats(1e6, 1e12), st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 2]))


@given(costs, settings_)
def test_more_of_anything_is_never_slower(cost, setting):
    seconds = model.time_s(cost, setting)
    for change in ("link_bits_per_s", "channels", "cpus"):
        assert model.time_s(cost, replace(setting, **{change: getattr(setting, change) * 2})) <= seconds
    assert model.time_s(cost, replace(setting, hosts=TWO_HOSTS)) <= model.time_s(cost, replace(setting, hosts=SHARED))


@given(costs, settings_)
def test_a_trial_without_a_limit_is_what_the_stretch_gives_back(cost, setting):
    fast = replace(setting, link_bits_per_s=1e30)
    plain = replace(cost, stretch=1.0)
    assert model.stretch(plain, fast, model.time_s(cost, fast)) == pytest.approx(cost.stretch)


class FakeTrials:
    """Costs by a method's spec; what has none fails."""

    last_cpu_s = 0.0
    share = 1.0

    def __init__(self, known: dict[str, Cost], over_link: dict[str, float] | None = None) -> None:
        self.known, self.over_link = known, over_link or {}
        self.asked: list[str] = []
        self.raced: list[str] = []

    def cost(self, method: str) -> Cost:
        self.asked.append(method)
        if method not in self.known:
            raise EndFailed("it does not work")
        return replace(self.known[method], method=method)

    def time_s(self, method: str, link_bits_per_s: int) -> float:
        self.raced.append(method)
        if method not in self.over_link:
            raise EndFailed("it broke")
        return self.over_link[method]


def search(trials: Any, wish: Wish) -> list[str]:
    return [found.cost.method for found in _Search(trials, wish, lambda text: None).run()]


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    monkeypatch.setattr("multifd.bench.machine.cpus", lambda: 2)


@pytest.fixture
def two_methods(monkeypatch):
    """Whatever is installed, there are none and zstd."""
    infos = [info for info in registry.describe() if info.name in ("none", "zstd")]
    monkeypatch.setattr("multifd.registry.describe", lambda: infos)


def levels(*numbers: int) -> dict[str, Cost]:
    """zstd that takes longer and sends less by every level."""
    known = {f"zstd:level={n}": Cost("", 4e8 * 0.97**n, 0.5 * 1.3**n, 0.4) for n in numbers}
    return {"none": PLAIN, "zstd": known["zstd:level=1"], **known}


def test_where_the_link_is_slow_a_higher_level_is_looked_for(two_methods):
    trials = FakeTrials(levels(*range(-7, 11)))
    assert search(trials, Wish(GIGABIT // 2))[0] == "zstd:level=9"
    assert not any("level=-" in method for method in trials.asked)


def test_where_processors_are_slow_a_lower_level_is_looked_for(two_methods):
    trials = FakeTrials({**levels(*range(-7, 11)), "none": replace(PLAIN, wire_bytes=8e9)})
    assert search(trials, Wish(20 * GIGABIT, cpus=2, hosts=TWO_HOSTS))[0].startswith("zstd:level=-")
    assert "zstd:level=3" not in trials.asked


def test_what_is_close_is_tried_over_the_link_and_that_decides():
    known = {"zlib": replace(PACKED, source_cpu_s=5.0), "zstd": replace(PACKED, source_cpu_s=4.9), "none": PLAIN}
    trials = FakeTrials(known, {"zlib": 3.3, "zstd": 3.4})
    assert search(trials, Wish(GIGABIT, methods=("none", "zlib", "zstd")))[:2] == ["zlib", "zstd"]
    assert set(trials.raced) == {"zlib", "zstd"}


def test_of_methods_that_are_equally_fast_the_cheapest_for_the_processors_is_best():
    """As with pages that do not shrink: the link decides, and compressing changes nothing but the processors' work."""
    known = {"zstd": Cost("", 9.99e8, 0.5, 0.3), "none": Cost("", 1e9, 0.1, 0.1)}
    assert search(FakeTrials(known), Wish(GIGABIT // 10, methods=("zstd", "none"))) == ["none", "zstd"]
    known["zstd"] = replace(known["zstd"], wire_bytes=9e8)
    assert search(FakeTrials(known), Wish(GIGABIT // 10, methods=("zstd", "none"))) == ["zstd", "none"]


def test_what_fails_over_the_link_is_left_out():
    known = {"zlib": replace(PACKED, source_cpu_s=5.0), "zstd": replace(PACKED, source_cpu_s=4.9), "none": PLAIN}
    wish = Wish(GIGABIT, methods=("none", "zlib", "zstd"))
    assert search(FakeTrials(known, {"zlib": 3.3}), wish) == ["zlib", "none"]
    with pytest.raises(MethodError, match="over the link"):
        search(FakeTrials({m: known[m] for m in ("zlib", "zstd")}), Wish(GIGABIT, methods=("zlib", "zstd")))


def test_what_the_link_alone_decides_is_not_tried_again():
    trials = FakeTrials({"none": PLAIN, "zstd": PACKED, "zlib": replace(PACKED, wire_bytes=4.1e8)})
    assert search(trials, Wish(GIGABIT // 10, methods=("none", "zlib", "zstd")))[0] == "zstd"
    assert not trials.raced


def test_other_machines_are_not_tried_here():
    known = {"zlib": replace(PACKED, source_cpu_s=5.0), "zstd": replace(PACKED, source_cpu_s=4.9)}
    trials = FakeTrials(known)
    assert search(trials, Wish(GIGABIT, cpus=4, methods=("zlib", "zstd")))
    assert not trials.raced


def test_a_method_that_fails_is_left_out_and_all_of_them_is_an_error():
    assert search(FakeTrials({"none": PLAIN}), Wish(GIGABIT, methods=("zlib", "none"))) == ["none"]
    with pytest.raises(MethodError, match="no method could be tried"):
        search(FakeTrials({}), Wish(GIGABIT, methods=("zlib",)))


@pytest.mark.parametrize(
    ("method", "is_taken", "virsh"),
    [
        ("none", True, "--parallel-connections 3 DOMAIN"),
        ("zstd", True, "--comp-methods zstd DOMAIN"),
        ("zlib:level=6", True, "--comp-methods zlib --comp-zlib-level 6 DOMAIN"),
        ("zstd:level=-1", False, None),
        ("zstd:level=auto", False, None),
        ("zlib:level=auto", False, None),
        ("zlib:engine=isal", False, None),
    ],
)
def test_commands(method, is_taken, virsh):
    assert commands.takes_qemu(method) == is_taken
    made = commands.multifd(method, 3, "a file")
    assert made["send"] == f"multifd send 'a file' tcp:HOST:PORT --method {method} --channels 3"
    if virsh:
        assert virsh in (commands.virsh(method, 3) or "")


def test_monitor_commands_set_what_a_capture_sets():
    capabilities, parameters = commands.qmp("zstd:level=3", 4, 1000)
    assert capabilities["arguments"] == {"capabilities": [{"capability": "multifd", "state": True}]}
    assert parameters["arguments"] == {
        "multifd-channels": 4,
        "multifd-compression": "zstd",
        "multifd-zstd-level": 3,
        "max-bandwidth": 1000,
    }


@pytest.fixture
def text_and_holes(tmp_path):
    """1024 pages of text, and as many zero pages behind them."""
    path = tmp_path / "guest.ram"
    synthetic.write_image(path, 1024 * PAGE, "text")
    with path.open("r+b") as file:
        file.truncate(2048 * PAGE)
    return SourceSpec("guest", str(path), "raw")


def test_a_sample_says_what_it_is_of(text_and_holes, tmp_path):
    with opened(text_and_holes) as source:
        some = trial.take(text_and_holes, source, tmp_path, most_pages=256)
        everything = trial.take(text_and_holes, source, tmp_path)
    assert (some.is_whole, some.pages, some.packets, some.of_packets) == (False, 256, 2, 8)
    assert (some.normal_pages, some.normal_error, some.of_pages, some.read_pages) == (1024, 0.0, 2048, 2048)
    assert 0 < trial.payload_error(some, "zlib") < 0.5
    assert everything.is_whole
    assert everything.spec == text_and_holes
    assert trial.payload_error(everything, "zlib") == 0


def test_what_was_not_looked_at_is_estimated(text_and_holes, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "MOST_SCANNED", 1024)
    with opened(text_and_holes) as source:
        some = trial.take(text_and_holes, source, tmp_path)
    assert not some.is_whole
    assert some.read_pages == 1024
    assert some.normal_pages == pytest.approx(1024)
    assert some.normal_error > 0


def test_a_trial_of_a_sample_tells_the_bytes_of_all(text_and_holes, tmp_path):
    costs = []
    for most_pages in (256, 1 << 14):
        with opened(text_and_holes) as source:
            sampled = trial.take(text_and_holes, source, tmp_path, most_pages)
        with trial.Trials(sampled, tmp_path, 2, 60.0) as trials:
            costs.append(trials.cost("zlib"))
            assert trials.share == (0.25 if most_pages == 256 else 1.0)
            assert trials.time_s("zlib", 10**10) > 0
    assert costs[0].wire_bytes == pytest.approx(costs[1].wire_bytes, rel=0.1)
    assert all(cost.source_cpu_s > 0 and cost.destination_cpu_s > 0 and cost.stretch >= 1 for cost in costs)


@pytest.mark.parametrize("hosts", [SHARED, TWO_HOSTS])
def test_an_advice_is_as_its_schema_says(tmp_path, hosts):
    said: list[str] = []
    wish = Wish(GIGABIT, channels=2, hosts=hosts, methods=("none", "zlib", "zstd:level=-1"))
    document = advise.advise(SourceSpec("text:1M", synthetic="text:1M"), wish, ["multifd", "advise"], said.append)
    schema.check(document, kind=schema.ADVICE)
    assert sorted(c["method"] for c in document["candidates"]) == sorted(wish.methods)
    assert document["best"] == document["candidates"][0]
    assert document["best_for_qemu"]["qemu"]
    assert document["sample"] == {"pages": 256, "read_pages": 256, "of_pages": 256, "zero_share": 0.0, "error": 0.0}
    assert "sampling" in said[0]


def test_of_nothing_but_zero_there_is_no_advice():
    with pytest.raises(UsageError, match="any method will do"):
        advise.advise(SourceSpec("zero", synthetic="zero:64K"), Wish(GIGABIT))


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(RamError, match="No such file"):
        advise.advise(SourceSpec("x", str(Path(tmp_path, "x"))), Wish(GIGABIT))
