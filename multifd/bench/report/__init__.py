"""A report about measured migrations: one HTML file that opens offline, in light and dark, and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multifd.errors import UsageError


def write(documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a report.

    Args:
        documents: results, checked by `multifd.bench.schema`; of any number of machines.
        path: of the HTML file; one that is there is replaced.

    Raises:
        UsageError: nothing was measured, the extra ``report`` is not installed, or the file cannot be written.
    """
    from multifd.bench.report.page import html

    text = html(documents)
    try:
        path.write_text(text, "utf-8")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
