"""A method's options: declared once, checked, parsed and described. Plugins take them from `multifd.method`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_args, get_type_hints

from multifd.errors import OptionError


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a `MethodOptions` class: its default, one line of help, and what it allows.

    Args:
        default: the value if the user gives none.
        help: what it does.
        low, high: inclusive bounds of a number; None leaves that side open.
        choices: the only texts allowed.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """The type of a field, and the words that stand beside its numbers: ``int | Literal["auto"]``."""
    kinds = [part for part in get_args(hint) if isinstance(part, type)]
    words = tuple(word for part in get_args(hint) for word in get_args(part))
    return (kinds[0], words) if kinds else (hint, ())


def _allowed(info: dataclasses.Field[Any], hint: Any) -> str:
    """What a field accepts, in words."""
    kind, words = _kind(hint)
    return ", or ".join((_allowed_values(info, kind), *words))


def _allowed_values(info: dataclasses.Field[Any], kind: type) -> str:
    choices, low, high = (info.metadata.get(k) for k in ("choices", "low", "high"))
    if choices:
        return "one of " + ", ".join(choices)
    if kind is bool:
        return "on or off"
    words = {int: "a whole number", float: "a number"}.get(kind, "text")
    if low is not None and high is not None:
        return f"{words} from {low} to {high}"
    if low is not None:
        return f"{words} of at least {low}"
    return f"{words} of at most {high}" if high is not None else words


@dataclass(frozen=True)
class MethodOptions:
    """Base of a method's options: a frozen dataclass of `option` fields (bool, int, float, str).

    A number may have words beside it: ``level: int | Literal["auto"] = option(1, ...)``.
    Building one checks every value and raises `OptionError`, so a method never sees a bad one.
    """

    refused: ClassVar[Mapping[str, str]] = {}
    """Options that users will expect but this method cannot have, with the reason."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for info in dataclasses.fields(self):
            value, (kind, words) = getattr(self, info.name), _kind(hints[info.name])
            if type(value) is str and value in words:
                continue
            choices, low, high = (info.metadata.get(k) for k in ("choices", "low", "high"))
            good = type(value) is kind or (kind is float and type(value) is int)
            good = good and (choices is None or value in choices)
            good = good and (low is None or value >= low) and (high is None or value <= high)
            if not good:
                raise OptionError(info.name, value, "expected " + _allowed(info, hints[info.name]))

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Self:
        """Options from what a user typed: names to texts.

        Raises:
            OptionError: unknown name, or a text that its field does not allow.
        """
        hints = get_type_hints(cls)
        infos = {info.name: info for info in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, text in texts.items():
            if name in cls.refused:
                raise OptionError(name, text, "not an option of this method: " + cls.refused[name])
            if name not in infos:
                known = ", ".join(infos) or "it has none"
                raise OptionError(name, text, f"no such option (options: {known})")
            kind, words = _kind(hints[name])
            try:
                if text in words:
                    values[name] = text
                elif kind is bool:
                    values[name] = {"on": True, "off": False}[text]
                else:
                    values[name] = kind(text)
            except (ValueError, KeyError):
                raise OptionError(name, text, "expected " + _allowed(infos[name], hints[name])) from None
        return cls(**values)

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One dict for each option: name, type, default, allowed (in words), low, high, choices, words, help."""
        hints = get_type_hints(cls)
        return [
            {
                "name": info.name,
                "type": _kind(hints[info.name])[0].__name__,
                "default": info.default,
                "allowed": _allowed(info, hints[info.name]),
                "low": info.metadata.get("low"),
                "high": info.metadata.get("high"),
                "choices": info.metadata.get("choices"),
                "words": _kind(hints[info.name])[1],
                "help": info.metadata.get("help", ""),
            }
            for info in dataclasses.fields(cls)
        ]
