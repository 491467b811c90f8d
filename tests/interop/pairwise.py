"""Fewer cases than a cross product: a selection in which each pair of values still occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import Any, TypeVar

_Case = TypeVar("_Case", bound=tuple[Any, ...])


def pairwise(cases: Iterable[_Case]) -> list[_Case]:
    """Cases, greedily chosen, with each pair of values, of two places, that occurs in `cases`.

    Of cases with as many new pairs, one whose values were chosen less often, then the first.
    """
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    wanted = set().union(*pairs.values())
    used: Counter[tuple[int, Any]] = Counter()
    chosen = []
    while wanted:
        best = max(pairs, key=lambda case: (len(pairs[case] & wanted), -sum(used[v] for v in enumerate(case))))
        wanted -= pairs[best]
        used.update(enumerate(best))
        chosen.append(best)
    return chosen
