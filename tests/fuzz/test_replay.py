"""The fuzzer's inputs that are kept, and what is one step away from them, without the fuzzer.

An input that was found once is a file of the corpus, so it is tried here for ever; its name says what it found.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
from types import ModuleType

import pytest

from multifd.pump import library
from tests.fuzz import driver, minimise, table

NEEDS_PUMP = frozenset({"packet", "relay", "send"})
SLOW = NEEDS_PUMP | {"recv_qpl_device"}
STEPS, STEPS_OF_SLOW = 150, 20


def _load(name: str) -> ModuleType:
    if name in NEEDS_PUMP and (reason := library.unavailable_reason()):
        pytest.skip(f"no pump: {reason}")
    if name == "recv_qpl_device":
        pytest.importorskip("multifd_qpl._batch", reason="multifd-qpl's extension was not built")
    return driver.load(name)


@pytest.mark.parametrize("name", driver.names())
def test_inputs_and_their_neighbours(name: str) -> None:
    target, rng = _load(name), random.Random(name)
    kept = [data for _, data in driver.inputs(name)]
    words = {target.run(data) for data in kept}
    for _ in range(STEPS_OF_SLOW if name in SLOW else STEPS):
        words.add(target.run(driver.neighbour(target, rng.choice(kept), rng)))
    assert len(words) > 1, "whatever comes, the same is seen"


@pytest.mark.parametrize("name", driver.names())
def test_the_corpus_is_small(name: str) -> None:
    sizes = [path.stat().st_size for path in minimise.kept(driver.CORPUS / name)]
    assert sum(sizes) <= minimise.MOST_BYTES
    assert max([0, *sizes]) <= driver.longest(_load(name))


def test_every_folder_of_the_corpus_is_a_targets() -> None:
    assert {path.name for path in driver.CORPUS.glob("*")} <= set(driver.names())


def test_the_page_has_every_target_and_no_other() -> None:
    named = set(re.findall(r"TARGET=(\w+)", table.PAGE.with_suffix(".md").read_text()))
    assert "all" in named <= {*driver.names(), "all"}
    assert table.PAGE.read_text() == table.render(json.loads(table.RECORD.read_text())), "python -m tests.fuzz.table"


@pytest.mark.skipif("MULTIFD_QPL_SANITIZED" not in os.environ, reason="make sanitize asks")
@pytest.mark.parametrize(
    ("module", "folder"), [("multifd._pump", "MULTIFD_SANITIZED"), ("multifd_qpl._batch", "MULTIFD_QPL_SANITIZED")]
)
def test_what_is_sanitized_is_what_is_run(module: str, folder: str) -> None:
    assert str(importlib.import_module(module).__file__).startswith(os.environ[folder])
