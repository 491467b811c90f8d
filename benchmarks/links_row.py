"""What ``benchmarks/links.py`` found of one image over one link, and what the level that follows the link promises."""

from __future__ import annotations

from dataclasses import dataclass, field

AUTO, NONE = "zstd:level=auto", "none"
MOST_TO_FIXED, MOST_TO_NONE = 1.05, 1.35
"""What is promised: time over that of the best fixed level, and of none on loopback."""


@dataclass(frozen=True)
class Row:
    """One image over one link by each way."""

    link: str
    is_changing: bool
    image: str
    mib: int
    channels: int
    measured_bits_per_s: float
    """What `none` came to, before anything else."""
    time_s: dict[str, float]
    """Medians, by method; ways without hope are not in it."""
    wire_bytes: dict[str, int]
    auto_stats: dict[str, int] = field(default_factory=dict)
    """What the level that follows the link did, in its last migration."""

    @property
    def best_fixed(self) -> str:
        """The best of zstd's fixed levels."""
        return min((way for way in self.time_s if way not in (AUTO, NONE)), key=lambda way: self.time_s[way])

    def auto_to(self, way: str) -> float | None:
        """The time of the level that follows the link over another's; None: it was not tried."""
        return self.time_s[AUTO] / self.time_s[way] if AUTO in self.time_s else None

    @property
    def is_kept(self) -> bool | None:
        """Whether what is promised held; None: it was not tried."""
        to_fixed, to_none = self.auto_to(self.best_fixed), self.auto_to(NONE)
        if to_fixed is None or to_none is None:
            return None
        if self.is_changing:
            return to_fixed < 1
        return to_fixed <= MOST_TO_FIXED and (self.link != "loopback" or to_none <= MOST_TO_NONE)
