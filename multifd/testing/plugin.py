"""The pytest plugin: option ``--multifd-method``, which methods the kit's tests run for, and what they report.

Loaded in every pytest run on a machine with multifd, so it imports nothing before it is needed.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

_ARGUMENT = "multifd_method"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--multifd-method``."""
    parser.getgroup("multifd").addoption(
        "--multifd-method",
        action="append",
        default=[],
        dest="multifd_methods",
        metavar="NAME[:KEY=VALUE,...]",
        help="a method for multifd's conformance kit; may be repeated; 'all' is every installed one",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each method: of the command line, else of the module's ``METHODS``."""
    if _ARGUMENT not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("multifd_methods") or getattr(metafunc.module, "METHODS", ())
    specs = _expand(asked)
    if not specs:
        raise pytest.Collector.CollectError(
            "multifd's conformance kit has no method to test: give --multifd-method NAME (or all), "
            'or write METHODS = ["NAME"] in the module that imports the suite'
        )
    metafunc.parametrize(_ARGUMENT, specs)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A method that cannot be loaded fails each of its tests at once, with the reason and nothing else."""
    spec = getattr(getattr(item, "callspec", None), "params", {}).get(_ARGUMENT)
    if spec is not None and (reason := _why_not_loaded(spec)):
        pytest.fail(reason, pytrace=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the kit measured but does not judge."""
    lines = [
        str(value)
        for report in terminalreporter.stats.get("passed", ())
        for key, value in report.user_properties
        if key == "multifd"
    ]
    if lines:
        terminalreporter.section("multifd methods")
        for line in lines:
            terminalreporter.write_line(line)


def _expand(asked: Any) -> list[str]:
    """Specs without duplicates."""
    from multifd.registry import installed

    specs: list[str] = []
    for spec in asked:
        specs += installed() if spec == "all" else [spec]
    return list(dict.fromkeys(specs))


@functools.cache
def _why_not_loaded(spec: str) -> str:
    from multifd.errors import MultifdError
    from multifd.registry import find, parse_spec

    try:
        find(parse_spec(spec)[0])
    except MultifdError as e:
        return str(e)
    return ""
