"""The contract: options, and the geometry of packets."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.errors import OptionError
from multifd.method import MAX_IOV, MethodOptions, MultifdMethods, RecvParams, SendParams, option
from multifd.pages import Geometry


@dataclass(frozen=True)
class Options(MethodOptions):
    refused: ClassVar = {"window": "it is fixed on QEMU's wire"}

    level: int = option(3, "how hard", low=0, high=9)
    ratio: float = option(1.5, "how much", low=0)
    ceiling: int = option(0, "at most", high=10)
    fast: bool = option(False, "hurry")
    engine: str = option("auto", "which", choices=("auto", "soft"))
    path: str = option("", "where")


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        ({}, {}),
        ({"level": "9"}, {"level": 9}),
        ({"ratio": "2"}, {"ratio": 2.0}),
        ({"ceiling": "-5"}, {"ceiling": -5}),
        ({"fast": "on", "engine": "soft"}, {"fast": True, "engine": "soft"}),
        ({"fast": "off", "path": "/a b"}, {"fast": False, "path": "/a b"}),
    ],
)
def test_parse(texts: dict[str, str], values: dict[str, Any]) -> None:
    assert Options.parse(texts) == Options(**values)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("level", "10", "a whole number from 0 to 9"),
        ("level", "-1", "a whole number from 0 to 9"),
        ("level", "3.0", "a whole number"),
        ("level", "", "a whole number"),
        ("ratio", "-0.1", "a number of at least 0"),
        ("ratio", "nan", "a number of at least 0"),
        ("ratio", "x", "a number"),
        ("ceiling", "11", "a whole number of at most 10"),
        ("fast", "True", "on or off"),
        ("fast", "1", "on or off"),
        ("engine", "hard", "one of auto, soft"),
        ("lvl", "1", "no such option (options: level, ratio, ceiling, fast, engine, path)"),
        ("window", "3", "fixed on QEMU's wire"),
        ("refused", "3", "no such option"),
    ],
)
def test_parse_refuses(name: str, text: str, says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)) as caught:
        Options.parse({name: text})
    assert caught.value.option == name


@pytest.mark.parametrize(
    "values", [{"level": True}, {"level": "3"}, {"level": 3.0}, {"fast": 1}, {"engine": None}, {"path": b"x"}]
)
def test_a_value_of_another_type(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Options(**values)


@given(st.dictionaries(st.sampled_from(["level", "ratio", "ceiling", "fast", "engine", "path", "?"]), st.text()))
def test_any_text_gives_options_or_an_option_error(texts: dict[str, str]) -> None:
    try:
        options = Options.parse(texts)
    except OptionError:
        return
    assert 0 <= options.level <= 9
    assert options.ratio >= 0
    assert options.ceiling <= 10


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().level = 4  # type: ignore[misc]


def test_describe() -> None:
    rows = {row["name"]: row for row in Options.describe()}
    assert list(rows) == ["level", "ratio", "ceiling", "fast", "engine", "path"]
    assert rows["level"] == {
        "name": "level", "type": "int", "default": 3, "allowed": "a whole number from 0 to 9", "low": 0, "high": 9,
        "choices": None, "words": (), "help": "how hard",
    }  # fmt: skip
    assert rows["engine"]["choices"] == ("auto", "soft")
    assert MethodOptions.describe() == []


@pytest.mark.parametrize(("page_size", "count"), [(4096, 128), (16384, 32), (65536, 8)])
def test_geometry(page_size: int, count: int) -> None:
    assert Geometry.of(page_size) == Geometry(page_size, count)
    assert count < MAX_IOV


def test_defaults_of_a_method() -> None:
    class Plain(MultifdMethods):
        name = "plain"

        def send_prepare(self, p: SendParams) -> None: ...

        def recv(self, p: RecvParams) -> None: ...

    method = Plain()
    assert method.options == MethodOptions()
    assert method.wire_code is None
    assert method.availability(method.options).ok
    assert Plain.capabilities.streaming  # each default promises least
    promises = Plain.capabilities
    assert not any((promises.page_independent, promises.deterministic, promises.verbatim))
    with pytest.raises(TypeError, match="abstract"):
        MultifdMethods()  # type: ignore[abstract]
