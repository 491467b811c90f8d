"""Fewer cases than a cross product: a selection in which each pair of values still occurs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any


def pairwise(cases: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """Cases, greedily chosen, with each pair of values, of two places, that occurs in `cases`."""
    pairs = {tuple(case): set(combinations(enumerate(case), 2)) for case in cases}
    wanted = set().union(*pairs.values())
    chosen: list[Sequence[Any]] = []
    while wanted:
        best = max(pairs, key=lambda case: len(pairs[case] & wanted))  # the first of equals: repeatable
        wanted -= pairs[best]
        chosen.append(best)
    return chosen
