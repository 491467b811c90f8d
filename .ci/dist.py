"""Builds what is published: ``python .ci/dist.py FOLDER``, by an interpreter that has the extra `build`.

Of each distribution a source distribution; a wheel with its C code, if it has any, which serves every CPython from
3.11 on; and a pure wheel, for every other machine. Wheels are built from the source distribution, so what lacks
something does not build. The same sources give the same bytes, wherever they lie: times are those of the last commit,
or SOURCE_DATE_EPOCH, or 1980's if there is neither.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
_1980 = 315532800
"""Seconds; zip knows no earlier time."""
_NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build", "tests")


class Distribution(NamedTuple):
    """One of those that are published."""

    folder: Path
    sources: tuple[str, ...]
    """What of the folder goes into the build: so no leftover of another build does."""
    command: str = ""
    """The entry point that gets man pages."""
    mode: str = ""
    """The environment's name for how the C code is built; empty if there is none."""


_COMMON = ("pyproject.toml", "README.md", "LICENSE")
DISTRIBUTIONS = (
    Distribution(
        ROOT,
        (*_COMMON, "CHANGELOG.md", "MANIFEST.in", "setup.cfg", "setup.py", "multifd"),
        "multifd",
        "MULTIFD_BUILD",
    ),
    Distribution(
        ROOT / "plugins/multifd-qpl",
        (*_COMMON, "MANIFEST.in", "setup.py", "src"),
        "multifd-iaa",
        "MULTIFD_QPL_BUILD",
    ),
    Distribution(ROOT / "plugins/multifd-lz4", (*_COMMON, "setup.py", "src"), mode="MULTIFD_LZ4_BUILD"),
)


def build(one: Distribution, out: Path, epoch: int) -> None:
    """Build one distribution."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tree, made = work / "tree", work / "made"
        tree.mkdir()
        for source in one.sources:
            if (one.folder / source).is_dir():
                shutil.copytree(one.folder / source, tree / source, ignore=_NOT_SOURCES)
            else:
                shutil.copy(one.folder / source, tree)
        if one.command:
            write_man_pages(one.command, tree / "man", epoch)
        (sdist,) = run_build(tree, made, "--sdist", epoch)
        pack_again(sdist, epoch)
        for mode in ("strict", "pure") if one.mode else ("",):
            with tarfile.open(sdist) as archive:
                archive.extractall(work / f"of{mode}", filter="data")
            (unpacked,) = (work / f"of{mode}").iterdir()
            for wheel in run_build(unpacked, made / mode, "--wheel", epoch, **({one.mode: mode} if mode else {})):
                deliver(wheel, out, epoch)
        shutil.copy(sdist, out)


def run_build(tree: Path, out: Path, kind: str, epoch: int, **environment: str) -> list[Path]:
    """The build's own files, by the tools that are installed here."""
    env = {
        **os.environ,
        # Debug information would be the path of a temporary folder, and most of the wheel.
        "CFLAGS": f"-g0 -ffile-prefix-map={tree}=.",
        "LDFLAGS": "-s",
        "SOURCE_DATE_EPOCH": str(epoch),
        **environment,
    }
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(out), str(tree)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}")
    return sorted(path for path in out.iterdir() if path.is_file() and path.suffix in (".gz", ".whl"))


def deliver(wheel: Path, out: Path, epoch: int) -> None:
    """Into the folder: what has C code with the name of the oldest glibc that it runs on."""
    if not wheel.stem.rpartition("-")[2].startswith("linux_"):
        shutil.copy(wheel, out)
        return
    tool = Path(sys.executable).parent
    done = subprocess.run(
        [tool / "auditwheel", "repair", "--wheel-dir", out, wheel],
        env={**os.environ, "PATH": f"{tool}{os.pathsep}{os.environ['PATH']}", "SOURCE_DATE_EPOCH": str(epoch)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"auditwheel repair {wheel.name}:\n{done.stdout}{done.stderr}")


def write_man_pages(command: str, folder: Path, epoch: int) -> None:
    """One for the command and one for each below it, of the code that is installed here."""
    from click_man.core import write_man_pages as write

    folder.mkdir()
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=command)
    group = entry.load()
    version = importlib.metadata.version(entry.dist.name) if entry.dist else ""
    write(command, group, version=version, target_dir=str(folder), date=f"{datetime.fromtimestamp(epoch, UTC):%F}")


def pack_again(sdist: Path, epoch: int) -> None:
    """The same files, of nobody, at one time, in order: setuptools takes owners and times as it finds them."""
    packed = sdist.with_suffix(".new")
    with (
        tarfile.open(sdist) as old,
        packed.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=epoch, fileobj=raw) as stream,
        tarfile.open(fileobj=stream, mode="w") as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.pax_headers = epoch, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    packed.replace(sdist)


def time_of_sources() -> int:
    """In seconds since 1970."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return _1980
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True)
    return _1980 if done.returncode else int(done.stdout)


def main() -> None:
    """All of them into the folder that is named."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    out = Path(sys.argv[1])
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    epoch = time_of_sources()
    for one in DISTRIBUTIONS:
        build(one, out, epoch)
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:>9}  {path}")


if __name__ == "__main__":
    main()
