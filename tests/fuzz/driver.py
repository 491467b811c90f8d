"""What all targets of the fuzzer have in common: how they are found, given their seeds, and run under atheris.

A target is a module in `targets`. It has ``run(data)``, which parses what somebody else wrote, checks what its
docstring promises, and returns what was seen, in a word; an exception that leaves it is a defect. It has ``seeds()``,
inputs that are sound, and may have ``fields(data)``: where in an input its fields are, as (place, bytes), for values
at the bounds of their types. ``LONGEST`` is the most bytes of an input that is worth a try; ``COVERS`` names the
modules that it is about, for the table of what is covered.

Coverage is that of Python code: multifd's and its plugins'. What C does is guided by the Python path beside it.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
"""What the fuzzer found besides the seeds: a folder for each target, minimised; see `minimise`."""
PACKAGES = ("multifd", "multifd_qpl", "multifd_lz4")
LONGEST = 2048
_AT_BOUNDS = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
_MOST_FIELDS = 200
_MOST_S, _MOST_MB = 20, 2048
"""What one input may take, and what all may take together: a machine that is busy with other things is slow."""


def names() -> list[str]:
    """All targets."""
    return sorted(path.stem for path in (FOLDER / "targets").glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """A target; what it imports is imported now."""
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def inputs(name: str) -> Iterator[tuple[str, bytes]]:
    """The inputs that are kept of a target, each with its name: its seeds, and its part of the corpus."""
    for number, seed in enumerate(load(name).seeds()):
        yield f"seed-{number}", seed
    for path in sorted((CORPUS / name).glob("*")):
        yield path.name, path.read_bytes()


def neighbour(target: ModuleType, data: bytes, rng: random.Random) -> bytes:
    """An input that differs in a field or two, or in its length."""
    out = bytearray(data)
    fields = list(target.fields(data))[:_MOST_FIELDS] if hasattr(target, "fields") else []
    for _ in range(rng.choice((1, 1, 2))):
        match rng.randrange(6) if fields else 4 + rng.randrange(2):
            case 0 | 1:  # a value at a bound of the field's type
                at, nbytes = rng.choice(fields)
                out[at : at + nbytes] = rng.choice(_AT_BOUNDS).to_bytes(1, "big") * nbytes
            case 2:  # a little more or less than it was
                at, nbytes = rng.choice(fields)
                value = int.from_bytes(out[at : at + nbytes], "big") + rng.choice((-4096, -8, -1, 1, 8, 4096))
                out[at : at + nbytes] = (value % (1 << 8 * nbytes)).to_bytes(nbytes, "big")
            case 3:  # a piece between two fields comes again, or is gone
                a, b = sorted((rng.choice(fields)[0], rng.choice(fields)[0]))
                out[a:b] = out[a:b] * rng.choice((0, 2))
            case 4 if out:
                out[rng.randrange(len(out))] = rng.choice((*_AT_BOUNDS, rng.randrange(256)))
            case _ if out:
                del out[rng.randrange(len(out)) :]
    return bytes(out[: longest(target)])


def longest(target: ModuleType) -> int:
    """Bytes of an input at most."""
    return int(getattr(target, "LONGEST", LONGEST))


def main(name: str, arguments: list[str]) -> None:
    """Fuzz a target, which does not return, or run it on inputs.

    Args:
        name: the target's.
        arguments: files: inputs that are run. Else libFuzzer's; the first is a folder where the corpus grows, to which
            the inputs that are kept are added.
    """
    paths = [Path(argument) for argument in arguments if not argument.startswith("-")]
    if paths and all(path.is_file() for path in paths):
        for path in paths:
            print(path, load(name).run(path.read_bytes()))
        return
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        target = load(name)
        kept = [data for _, data in inputs(name)]
    paths[0].mkdir(parents=True, exist_ok=True)
    for data in kept:
        (paths[0] / hashlib.sha1(data).hexdigest()).write_bytes(data)

    rng: random.Random | None = None

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        nonlocal rng
        rng = rng or random.Random(seed)  # a generator for each input took longer than most targets do
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return neighbour(target, data, rng)[:most]

    gc.collect()
    gc.freeze()  # what is imported stays: the collector need not look at it again and again
    descriptors, runs = Descriptors(), 0

    def one_input(data: bytes) -> None:
        nonlocal runs
        try:
            target.run(data)
        except BaseException:  # libFuzzer does not keep it if it was made by the mutator
            path = paths[0].with_name(f"{name}-{hashlib.sha1(data).hexdigest()[:12]}")
            path.write_bytes(data)
            print(f"found: {path}", flush=True)
            raise
        runs += 1
        if not runs % 1000:
            gc.collect()
            descriptors.check()

    options = [f"-max_len={longest(target)}", f"-timeout={_MOST_S}", f"-rss_limit_mb={_MOST_MB}"]
    kwargs = {"custom_mutator": mutate} if hasattr(target, "fields") else {}
    atheris.Setup([sys.argv[0], *options, *arguments], one_input, **kwargs)
    atheris.Fuzz()


class Descriptors:
    """What a target may not leave open: looked at now and then, since a look costs more than most inputs."""

    _MORE = 16
    """Those that a first use opens once, and what the collector has not seen yet."""

    def __init__(self) -> None:
        self._first: int | None = None

    def check(self) -> None:
        """Raises AssertionError if there are many more than the first time."""
        count = len(os.listdir("/proc/self/fd"))
        self._first = count if self._first is None else self._first
        assert count <= self._first + self._MORE, f"{count} descriptors are open, there were {self._first}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
