"""The kit on a method of the guide's, installed in a folder as pip would leave it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_kit(folder: Path, source: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Copy the module `source` with its class ``NameMethod`` into the folder, and run the kit for it there."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[multifd.methods]\n{name} = {source.stem}:{name.title()}Method\n")
    shutil.copy(source, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--multifd-method", name]
    return subprocess.run(
        [*command, "--pyargs", "multifd.testing", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        timeout=110,
    )
