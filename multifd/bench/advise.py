"""Which method and level, for this memory and this link: the search for it, and the advice as a document.

What is asked first is what every method costs at its default level, by trials (`multifd.bench.trial`); from there a
level is looked for upwards where the link is what everything waits for, downwards where processors are. What comes
out best by arithmetic (`multifd.bench.model`) is tried once more over a link of that rate, beside those close to it,
if the advice is for what this machine is; the trial decides then.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multifd import registry, scratch
from multifd._version import __version__
from multifd.bench import commands, machine, model, schema
from multifd.bench.campaign import format_of, opened
from multifd.bench.job import SourceSpec
from multifd.bench.measure import EndFailed, materialised
from multifd.bench.model import SHARED, Cost, Setting
from multifd.bench.trial import Sampled, Trials, payload_error, take
from multifd.errors import MethodError, UsageError
from multifd.ram.block import Source

UPWARDS, DOWNWARDS = (1, 2, 5, 8), (1, 2, 4, 8)
"""Levels that are tried, counted from the default: upwards until one is far too slow, downwards all."""
_TOO_SLOW_S = 4.0
"""Processor seconds of a trial after which no higher level is tried."""
_HOPELESS = 1.5
"""A method that is so many times slower than the best at the default level is not tried at others."""
_CLOSE = 1.3
"""What is at most so many times slower than the best by arithmetic is tried over the link."""
_TIE = 1.03
"""Methods whose times are no further apart are equally fast, as far as short trials tell: the best of them is the one
that takes the processors least."""
_MOST_CLOSE = 4
_CLEAR = 0.7
"""The share of the link's time that the processors need, below which the link alone decides, and no trial is needed."""
_SHORT_S = 0.3
"""A trial that is shorter is made in any case: to begin and to end is much of it then."""
_HEATS = 3
IAA_BYTES_PER_S = 3_250_000_000
"""That one device compresses each second: 4 devices of a Granite Rapids 13 GB/s (Kim et al., "LILO", HPCA 2026). For
Intel's first generation 3.4 (QPL v8's author) and 4 GB/s (Intel, January 2024) were published; docs/iaa-evidence.md."""
_IAA_METHOD = "qpl"


@dataclass(frozen=True)
class Wish:
    """What an advice is asked for."""

    link_bits_per_s: int
    channels: int = 2
    cpus: int = 0
    """That each host has for the migration; 0: as many as this process may use."""
    hosts: int = SHARED
    """1: both ends share one host's processors, as `multifd bench` measures; 2: each has its own."""
    methods: tuple[str, ...] = ()
    """The only ones that come into question; empty: every one that can run here, at several levels."""
    timeout_s: float = 60.0

    @property
    def setting(self) -> Setting:
        """For the arithmetic."""
        return Setting(self.link_bits_per_s, self.channels, self.cpus or machine.cpus(), self.hosts)

    @property
    def is_here(self) -> bool:
        """Whether a trial on this machine is what was asked for."""
        return self.hosts == SHARED and self.setting.cpus == machine.cpus()


@dataclass
class _Found:
    """A candidate: its cost, and how long it takes by a trial over the link, if there was one."""

    cost: Cost
    own_stretch: float
    """By its own trials alone."""
    tried_s: float | None = None

    def time_s(self, setting: Setting) -> float:
        return model.time_s(self.cost, setting) if self.tried_s is None else self.tried_s


def advise(
    spec: SourceSpec, wish: Wish, command: Sequence[str] = (), say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Sample a source and say which method is best for it.

    Args:
        spec: the source.
        wish: for which link, channels and processors.
        command: that asked, for the document.
        say: told in words what happens.

    Returns:
        A document as advice.schema.json has it.

    Raises:
        MultifdError: the source cannot be read, all of it is zero, or no method can be tried.
    """
    with materialised(spec) as made, scratch.folder() as folder:
        with opened(made) as source:
            say(f"{spec.id}: sampling")
            sampled = take(made, source, Path(folder))
            about = _about(spec, source)
        if not sampled.packets:
            raise UsageError(f"{spec.id}: every page that was looked at is zero: any method will do")
        with Trials(sampled, Path(folder), wish.channels, wish.timeout_s) as trials:
            search = _Search(trials, wish, say)
            found = search.run()
            error = payload_error(sampled, found[0].cost.method)
    return _document(about, wish, command, sampled, found, math.hypot(error, sampled.normal_error))


class _Search:
    """Trials until the best is known."""

    def __init__(self, trials: Trials, wish: Wish, say: Callable[[str], None]) -> None:
        self._trials, self._wish, self._say = trials, wish, say
        self._setting = wish.setting
        self._found: dict[str, _Found] = {}

    def run(self) -> list[_Found]:
        """All candidates, the best first."""
        specs = list(self._wish.methods) or [i.name for i in registry.describe() if i.status == "ok"]
        for spec in specs:
            self._try(spec)
        if not self._found:
            raise MethodError("no method could be tried")
        if not self._wish.methods:
            best = min(map(self._time_of, self._found.values()))
            for name in [n for n, found in self._found.items() if self._time_of(found) <= _HOPELESS * best]:
                self._climb(name)
        if self._wish.is_here:
            self._heats()
        if not self._found:
            raise MethodError("no method could be tried over the link")
        fastest_s = _TIE * min(map(self._time_of, self._found.values()))
        return sorted(self._found.values(), key=lambda found: self._rank(found, fastest_s))

    def _rank(self, found: _Found, fastest_s: float) -> tuple[float, float]:
        """By processor time among the fastest, by time among the others."""
        seconds = self._time_of(found)
        return (found.cost.cpu_s if seconds <= fastest_s else math.inf), seconds

    def _time_of(self, found: _Found) -> float:
        return found.time_s(self._setting)

    def _try(self, spec: str) -> float:
        """Seconds that a method takes by arithmetic; infinite if it does not work."""
        if spec not in self._found:
            try:
                cost = self._trials.cost(spec)
            except (EndFailed, MethodError) as e:
                self._say(f"{spec}: left out: {e}")
                return math.inf
            self._found[spec] = _Found(cost, cost.stretch)
            self._even_out()
            self._say(f"{spec}: about {model.time_s(cost, self._setting):.3g} s")
        return self._time_of(self._found[spec])

    def _even_out(self) -> None:
        """Half of what stretches a method's time is its own, half is what stretches all that compress: the machine.

        A trial is short, and whatever else runs meanwhile takes from one more than from another.
        """
        compressing = [f for f in self._found.values() if not _is_plain(f.cost.method)]
        if compressing:
            common = statistics.median(f.own_stretch for f in compressing)
            for found in compressing:
                found.cost = replace(found.cost, stretch=math.sqrt(found.own_stretch * common))

    def _climb(self, name: str) -> None:
        """Try other levels of a method that has them."""
        options = {option["name"]: option for option in registry.find(name).Options.describe()}
        level = options.get("level")
        if level is None or level["type"] != "int":
            return
        low = -math.inf if level["low"] is None else level["low"]
        high = math.inf if level["high"] is None else level["high"]
        is_upwards = model.bound(self._found[name].cost, self._setting) == "link"
        steps = UPWARDS if is_upwards else [-step for step in DOWNWARDS]
        best = self._time_of(self._found[name])
        for number in [n for step in steps if low <= (n := level["default"] + step) <= high]:
            seconds = self._try(f"{name}:level={number}")
            best = min(best, seconds)
            # A higher level than one that is far too slow is slower still; a lower one may be an odd one out.
            if is_upwards and (seconds > _CLOSE * best or self._trials.last_cpu_s > _TOO_SLOW_S):
                return

    def _heats(self) -> None:
        """Try those that are close to each other over a link of that rate."""
        ranked = sorted(self._found.values(), key=self._time_of)
        close = [f for f in ranked[:_MOST_CLOSE] if self._time_of(f) <= _CLOSE * self._time_of(ranked[0])]
        if len(close) < 2 or all(self._is_clear(f.cost) for f in close):
            return
        self._say(f"trying {', '.join(f.cost.method for f in close)} over the link")
        seconds: dict[str, list[float]] = {f.cost.method: [] for f in close}
        for _ in range(_HEATS):
            for method in list(seconds):
                try:
                    seconds[method].append(self._trials.time_s(method, self._wish.link_bits_per_s))
                except EndFailed as e:
                    self._say(f"{method}: left out: {e}")
                    del seconds[method], self._found[method]
        for method, taken in seconds.items():
            found = self._found[method]
            # A trial is short, and what the sockets' buffers hold is a part of it: the link has the last word.
            found.tried_s = max(min(taken), model.stages(found.cost, self._setting)["link"])

    def _is_clear(self, cost: Cost) -> bool:
        """Whether a trial over the link would tell nothing new, and take its time."""
        stages = model.stages(cost, self._setting)
        link_s = stages.pop("link")
        return max(stages.values()) < _CLEAR * link_s and link_s * self._trials.share > _SHORT_S


def _about(spec: SourceSpec, source: Source) -> dict[str, Any]:
    return {
        "id": spec.id,
        "format": "synthetic" if spec.synthetic else format_of(source),
        "page_size": source.machine.page_size,
        "ram_bytes": sum(block.used_length for block in source.blocks),
    }


def _document(
    about: dict[str, Any], wish: Wish, command: Sequence[str], sampled: Sampled, found: Sequence[_Found], error: float
) -> dict[str, Any]:
    setting = wish.setting
    ram_bytes = about["ram_bytes"]
    candidates = [_candidate(f, setting, ram_bytes) for f in found]
    best = candidates[0]
    plain = [f.cost for f in found if _is_plain(f.cost.method)]
    others = [f.cost for f in found if not _is_plain(f.cost.method)]
    for_qemu = next((c for c in candidates if c["qemu"]), None)
    return {
        "schema": schema.ADVICE,
        "version": schema.VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "multifd": __version__,
        "machine": machine.describe(),
        "source": about,
        "link_bits_per_s": wish.link_bits_per_s,
        "channels": wish.channels,
        "cpus": setting.cpus,
        "hosts": wish.hosts,
        "sample": {
            "pages": sampled.pages,
            "read_pages": sampled.read_pages,
            "of_pages": sampled.of_pages,
            "zero_share": round(1 - sampled.normal_pages / sampled.of_pages, 4),
            "error": round(min(error, 1.0), 4),
        },
        "best": best,
        "best_for_qemu": for_qemu,
        "candidates": candidates,
        "none_wins_above_bits_per_s": _crossover(plain, others, setting),
        "channels_to_fill_link": model.filling_channels(found[0].cost, setting),
        "iaa": _iaa(found, sampled, setting),
        "commands": _commands(best, for_qemu, wish, about["id"]),
    }


def _candidate(found: _Found, setting: Setting, ram_bytes: int) -> dict[str, Any]:
    cost = found.cost
    return {
        "method": cost.method,
        "total_time_s": round(found.time_s(setting), 4),
        "is_tried": found.tried_s is not None,
        "bound": model.bound(cost, setting),
        "transferred_bytes": round(cost.wire_bytes),
        "ratio": round(ram_bytes / cost.wire_bytes, 4),
        "source_cpu_s": round(cost.source_cpu_s, 4),
        "destination_cpu_s": round(cost.destination_cpu_s, 4),
        "qemu": commands.takes_qemu(cost.method),
    }


def _crossover(plain: Sequence[Cost], others: Sequence[Cost], setting: Setting) -> float | None:
    if not plain or not others:
        return None
    above = model.crossover_bits_per_s(plain[0], others, setting)
    return None if above is None else float(f"{above:.3g}")


def _is_plain(method: str) -> bool:
    return registry.find(registry.parse_spec(method)[0]).capabilities.verbatim


def _iaa(found: Sequence[_Found], sampled: Sampled, setting: Setting) -> dict[str, Any] | None:
    """Devices at each end that keep the link full, by the ratio that this source has in their format."""
    cost = next((f.cost for f in found if registry.parse_spec(f.cost.method)[0] == _IAA_METHOD), None)
    if cost is None:
        return None
    normal_bytes = sampled.normal_pages * sampled.page_size
    needed = normal_bytes / (cost.wire_bytes * 8 / setting.link_bits_per_s)
    return {
        "devices": math.ceil(needed / IAA_BYTES_PER_S),
        "bytes_per_s": round(needed),
        "device_bytes_per_s": IAA_BYTES_PER_S,
        "ratio": round(normal_bytes / cost.wire_bytes, 4),
    }


def _commands(best: dict[str, Any], for_qemu: dict[str, Any] | None, wish: Wish, source: str) -> dict[str, Any]:
    channels = wish.channels
    return {
        "qmp": commands.qmp(for_qemu["method"], channels) if for_qemu else [],
        "virsh": commands.virsh(for_qemu["method"], channels) if for_qemu else None,
        "multifd": commands.multifd(best["method"], channels, source),
    }
