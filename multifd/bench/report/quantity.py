"""Quantities as people write them: three digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rate(bits_per_s: float) -> str:
    """Bits each second, as makers of links write them: ``2.5 Gbit/s``."""
    return _scaled(bits_per_s, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"), 1000)


def about(bits_per_s: float) -> str:
    """A rate that was calculated from measured ones, with two digits."""
    return rate(float(f"{bits_per_s:.2g}"))


def bytes_rate(bytes_per_s: float) -> str:
    """Bytes each second, in binary units: ``800 MiB/s``."""
    return f"{nbytes(bytes_per_s)}/s"


def nbytes(count: float) -> str:
    """Bytes, in binary units: ``4 GiB``."""
    return _scaled(count, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def seconds(value: float) -> str:
    """A time: ``350 ms``, ``12.3 s``, ``4.5 min``, ``2.2 h``."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if value >= 2 * length:
            return f"{digits(value / length)} {unit}"
    return f"{digits(value)} s" if value >= 1 else f"{digits(value * 1e3)} ms"


def digits(value: float) -> str:
    """A number with three digits that count, never in powers of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, units: Sequence[str], step: int) -> str:
    power = 0
    while value >= step and power < len(units) - 1:
        value /= step
        power += 1
    return f"{digits(value)} {units[power]}"
