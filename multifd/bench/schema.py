"""The documents of ``multifd bench`` and ``multifd advise``: their schemas, read and checked.

The schemas are JSON Schema files beside this module. A reader ignores keys that it does not know; the version counts
up when a key goes or changes its meaning.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from multifd.errors import UsageError

RESULT, ADVICE = "multifd-bench", "multifd-advice"
VERSION = 1
_FILES = {RESULT: "result.schema.json", ADVICE: "advice.schema.json"}
_SHOWN = 200  # characters of what is wrong


def schema(kind: str = RESULT) -> dict[str, Any]:
    """The JSON Schema of a kind of document.

    Args:
        kind: `RESULT` or `ADVICE`.
    """
    loaded: dict[str, Any] = json.loads(files("multifd.bench").joinpath(_FILES[kind]).read_text("utf-8"))
    return loaded


def check(document: Any, where: str = "the document", kind: str = RESULT) -> None:
    """Check a document against its schema.

    Args:
        document: as json.loads gives it.
        where: what it is called in messages, such as its path.
        kind: `RESULT` or `ADVICE`.

    Raises:
        UsageError: it is another document, of a later version, or not as the schema says; names the place.
            Also if the package jsonschema, of the extra ``report``, is missing.
    """
    if not isinstance(document, dict) or document.get("schema") != kind:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise UsageError(f"{where}: schema {got!r}, expected {kind!r}")
    if document.get("version") != VERSION:
        raise UsageError(f"{where}: version {document.get('version')!r} of {kind}, this multifd reads {VERSION}")
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError as e:
        raise UsageError(f"{where}: cannot be checked without jsonschema: pip install 'multifd[report]'") from e
    error = best_match(Draft202012Validator(schema(kind)).iter_errors(document))
    if error is not None:
        raise UsageError(f"{where}: {error.json_path}: {error.message[:_SHOWN]}")


def read(path: Path, kind: str = RESULT) -> dict[str, Any]:
    """A document from a file, checked.

    Raises:
        UsageError: as `check`; also if it cannot be read or is no JSON.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: not JSON: no text at byte {e.start}") from e
    except ValueError as e:
        raise UsageError(f"{path}: not JSON: {e}") from e
    except RecursionError:
        raise UsageError(f"{path}: not JSON: nested too deep") from None
    check(document, str(path), kind)
    checked: dict[str, Any] = document
    return checked
