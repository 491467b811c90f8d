"""Prints pip constraints: the oldest release of everything that multifd and its plugins say they run with.

Read from what is installed here; test tools and what builds are not meant.
"""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement

DISTRIBUTIONS = ("multifd", "multifd-qpl", "multifd-lz4")
_NOT_FOR_USERS = ("test", "lint", "docs", "build", "fuzz")


def oldest() -> dict[str, str]:
    """Each distribution that somebody's installation may need, and its lower bound."""
    found = {}
    for name in DISTRIBUTIONS:
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            if requirement.marker and any(requirement.marker.evaluate({"extra": one}) for one in _NOT_FOR_USERS):
                continue
            if requirement.name in DISTRIBUTIONS:
                continue
            bounds = [one.version for one in requirement.specifier if one.operator == ">="]
            if len(bounds) != 1:
                raise SystemExit(f"{name} requires {requirement}: expected one lower bound")
            if found.setdefault(requirement.name, bounds[0]) != bounds[0]:
                raise SystemExit(f"{name} requires {requirement}, another of {DISTRIBUTIONS} {found[requirement.name]}")
    return found


if __name__ == "__main__":
    for name, version in sorted(oldest().items()):
        print(f"{name}=={version}")
