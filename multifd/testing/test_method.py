"""What a method says of itself: name, API, wire code, options, availability."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from typing import Any

from multifd.errors import OptionError
from multifd.method import Availability, MethodOptions, MultifdMethods
from multifd.registry import find, parse_spec
from multifd.testing.harness import Broken, Section

WIRE_CODES = (None, 0, 2, 4, 8, 16, 32)
"""What `MultifdMethods.wire_code` may be."""


def _class(spec: str) -> type[MultifdMethods]:
    return find(parse_spec(spec)[0])


def test_identity(multifd_method: str) -> None:
    """Name, api, wire code and version are what the wire and the registry can carry."""
    cls = _class(multifd_method)
    who = f"method {cls.name!r}"
    if cls.wire_code not in WIRE_CODES or isinstance(cls.wire_code, bool):
        raise Broken(
            f"wire_code is one of {', '.join(map(str, WIRE_CODES))}",
            Section.WIRE,
            f"{who}: {cls.wire_code!r}; a format that QEMU has no code for has None",
        )
    if type(cls.wire_version) is not int or not 0 <= cls.wire_version <= 255:
        raise Broken("wire_version is a byte", Section.VERSIONING, f"{who}: {cls.wire_version!r}")
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, MethodOptions)):
        raise Broken("Options is a subclass of MethodOptions", Section.OPTIONS, f"{who}: {cls.Options!r}")


def _wrong_values(info: dict[str, Any]) -> list[tuple[str, Any]]:
    """What an option must refuse: (why, value)."""
    of_type: dict[str, list[Any]] = {"int": ["1", 1.5, True], "float": ["x"], "bool": [1, "on"], "str": [3]}
    wrong = [("another type", v) for v in (None, b"x", *of_type.get(info["type"], []))]
    if info["low"] is not None:
        wrong.append(("below its least", info["low"] - 1))
    if info["high"] is not None:
        wrong.append(("above its most", info["high"] + 1))
    if info["choices"]:
        wrong.append(("not a choice", "no-such-choice"))
    return wrong


def test_options(multifd_method: str) -> None:
    """Unknown options, wrong types and values out of range are OptionErrors; the defaults are not."""
    cls = _class(multifd_method)
    promise = "an option that is unknown, of the wrong type or out of range raises OptionError"

    def refuse(what: str, call: Any) -> None:
        try:
            call()
        except OptionError:
            return
        except Exception as e:
            raise Broken(promise, Section.OPTIONS, f"method {cls.name!r}: {what} raised {e!r}") from e
        raise Broken(promise, Section.OPTIONS, f"method {cls.name!r}: {what} was accepted")

    refuse("option no_such_option=1", lambda: cls.Options.parse({"no_such_option": "1"}))
    for name in cls.Options.refused:
        refuse(f"refused option {name}", lambda name=name: cls.Options.parse({name: "1"}))
    for info in cls.Options.describe():
        name = info["name"]
        for why, value in _wrong_values(info):
            refuse(f"option {name}={value!r} ({why})", lambda v=value, n=name: cls.Options(**{n: v}))
        if info["type"] != "str" or info["choices"]:
            refuse(f"option {name}= as text", lambda n=name: cls.Options.parse({n: "not-a-value"}))
    try:
        defaults = cls.Options()
        usable = dataclasses.is_dataclass(defaults) and defaults == cls.Options.parse({})
        usable = usable and cls(defaults).options == cls().options == defaults
    except Exception as e:
        raise Broken("a method can be built with its default options", Section.OPTIONS, f"{cls.name!r}: {e!r}") from e
    if not usable:
        raise Broken("a method keeps the options it is built with", Section.OPTIONS, f"{cls.name!r}: {defaults!r}")
    try:
        defaults.kit = 1  # type: ignore[attr-defined]
    except dataclasses.FrozenInstanceError:
        return
    raise Broken(
        "Options is a frozen dataclass", Section.OPTIONS, f"method {cls.name!r}: {cls.Options!r} is not frozen"
    )


def test_availability(multifd_method: str) -> None:
    """For every option at its limits: an answer, in words if it is no, without work and without raising."""
    cls = _class(multifd_method)
    variants: list[dict[str, Any]] = [{}]
    for info in cls.Options.describe():
        values = info["choices"] or [v for v in (info["low"], info["high"]) if v is not None]
        variants += [{info["name"]: v} for v in values]
    threads = threading.active_count()
    begin = time.monotonic()
    for _ in range(20):
        for values in variants:
            options = cls.Options(**values)
            try:
                answer = cls.availability(options)
            except Exception as e:
                raise Broken(
                    "availability never raises", Section.OPTIONS, f"method {cls.name!r}: {options}: {e!r}"
                ) from e
            if not isinstance(answer, Availability) or not (answer.ok or answer.reason):
                raise Broken(
                    "availability answers with an Availability, and says why if it is no",
                    Section.OPTIONS,
                    f"method {cls.name!r}: {options}: {answer!r}",
                )
    gc.collect()
    # A hundred times what the slowest of the built-in ones takes, imports included.
    if time.monotonic() - begin > 10 + 0.1 * 20 * len(variants) or threading.active_count() > threads:
        raise Broken(
            "availability is cheap: no waiting, no threads",
            Section.OPTIONS,
            f"method {cls.name!r}: {20 * len(variants)} calls took {time.monotonic() - begin:.1f} s and left "
            f"{threading.active_count() - threads} threads",
        )
