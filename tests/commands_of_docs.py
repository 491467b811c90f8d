"""The commands that pages show, and of each which test runs it or why none does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


def commands(page: Path) -> Iterator[str]:
    """Each command line of a page's shell examples, continued lines as one, without remarks and prompts."""
    fence: str | None = None
    for line in page.read_text().replace("\\\n", " ").splitlines():
        text = line.strip()
        if text.startswith("```"):
            fence = None if fence is not None else text.removeprefix("```")
        elif fence in ("sh", "console", ""):
            command = re.sub(r"\s+# .*", "", text.removeprefix("$ "))
            if command and not command.startswith("#"):
                yield " ".join(command.split())


_SCRIPTS = "tests/test_docs.py"
RUN = {
    # As they stand: the whole example in which they are is a script that a test takes from the page.
    "docs/quickstart.md": r"(head|truncate) .*|.* unix:multifd.sock .*|wait|cmp .*",
    "docs/between-hosts.md": r"head .*|.* unix:(in|out)\.sock.*|wait|cmp .*",
    "docs/tls.md": r"multifd tls new .*|head .*|.* unix:migration.sock .*|wait|cmp .*",
    "docs/stored.md": r"head .*|.*dir:guest\..*",
}
"""Page to what of it is run by a test that reads the page."""

ALIKE = {
    r"make (demo|test|dist|check-dist|fuzz TARGET=all .*)": ".ci/run",
    r"make (fuzz|fuzz-c) TARGET=.*": "tests/fuzz/test_replay.py",
    r"multifd (capture|restore) vm.ram --(qmp|recover).*": "tests/interop/test_capture_command.py",
    r"multifd export .*": "tests/interop/test_export.py",
    r"multifd (info|verify) .*": "tests/interop/test_mapped_ram.py",
    r"multifd digest .*|sha256sum -c .*": "tests/ram/test_digest.py",
    r"multifd (bench|report) .*": "tests/cli/test_evidence.py",
    r"multifd (new-plugin .*|methods)|multifd-iaa simulate .*": "tests/packages/test_packages.py",
    r"cd multifd-mine .*|pytest|pytest --pyargs multifd.testing .*|multifd demo --method mine": "tests/testing",
    r"cc -shared .*": "tests/test_native_example.py",
    r"multifd-iaa status.*": "plugins/multifd-qpl/tests/test_status.py",
    r"multifd relay --config .*|python3 -c 'import multifd.service; .*": "tests/service/test_command.py",
    r"multifd (send|receive) \S*( \S*)?dir:vm\..*|multifd receive dir:vm\..*": "tests/engine/test_streams.py",
}
"""Commands that are run with other names and places, and what runs them."""

_ELSEWHERE = r"(HOST|DESTINATION|destination|host|scheduler|0\.0\.0\.0|192\.0\.2\.\d|127\.0\.0\.2):|/run/"
NOT_RUN = {
    rf".*multifd (send|receive|relay) .*({_ELSEWHERE}).*": "another machine; tests/engine does it between processes",
    r"virsh .*|multifd (capture|restore) vm.ram --libvirt .*": "libvirt; tests/manage has one of its own making",
    r"(git|cmake|for i in|accel-config|groupadd|usermod|echo|udevadm) .*": "an IAA, root, or a network",
    r"(cp multifd-relay|systemd-sysusers|systemctl).*": "root and systemd; tests/service/test_systemd.py has the units",
    r"(pip|pipx) install .*|python -m build|twine upload .*": "an index where this is published",
    r"MULTIFD_Q\w+=/path/\S+ pytest .*": "a library or a QEMU that is built first",
    r"mv vm.streams/.*|ln -s /mnt/.*": "a second disk",
}
"""Commands that no test runs, and what they would need; that they and their options exist is tested."""


def told_of(page: str, command: str) -> list[str]:
    """What runs a command, or why nothing does."""
    found = [_SCRIPTS] if re.fullmatch(RUN.get(page, "(?!)"), command) else []
    return found + [
        why for table in (ALIKE, NOT_RUN) for pattern, why in table.items() if re.fullmatch(pattern, command)
    ]
