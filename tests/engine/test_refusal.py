"""What to check at a destination that did not take the memory: by what QEMU 7.2.22 and 10.0.2 let a source see.

What the rows hold was seen with multifd as the source (docs/qemu.md has the table), but for the last: nobody has tried
a destination that lacks a device. It is what one that began to load and then went away would leave.
"""

from __future__ import annotations

from itertools import product

import pytest

from multifd.engine.refusal import Evidence, Seen, explain

OPEN, CLOSED, UNREAD = Seen

CASES = {
    "more channels there, 7.2 and 10.0": (False, OPEN, [OPEN, OPEN], ["more than 2 channels"]),
    "another uuid, 7.2": (False, OPEN, [UNREAD, CLOSED], ["uuid"]),
    "another uuid, 10.0": (False, UNREAD, [CLOSED], ["uuid"]),
    "another uuid, 10.0, a channel refused": (False, UNREAD, [CLOSED, UNREAD], ["uuid"]),
    "another machine type, 7.2 and 10.0": (False, CLOSED, [CLOSED, CLOSED], ["machine type", "'pc-q35-7.2'"]),
    "multifd off, 7.2 and 10.0": (True, OPEN, [UNREAD, UNREAD], ["multifd off"]),
    "fewer channels there, 7.2 and 10.0": (True, OPEN, [OPEN, UNREAD, UNREAD], ["channels 1, 2", "fewer"]),
    "one channel fewer": (True, OPEN, [OPEN, OPEN, UNREAD], ["channel 2:", "fewer multifd-channels than 3"]),
    "another method, 7.2 and 10.0, hung": (True, OPEN, [CLOSED, CLOSED], ["multifd-compression", "'zstd'"]),
    "another method, broken while sending": (True, OPEN, [OPEN, UNREAD], ["multifd-compression"]),
    "another method, all in flight": (True, OPEN, [OPEN, OPEN], ["multifd-compression"]),
    "another dialect, 7.2": (True, CLOSED, [CLOSED, UNREAD], ["release"]),
    "another memory size, 7.2": (True, CLOSED, [CLOSED, CLOSED], ["memory size"]),
    "a device that is missing there, not tried": (True, UNREAD, [CLOSED, CLOSED], ["devices"]),
}  # fmt: skip


@pytest.mark.parametrize(("has_answered", "main", "channels", "words"), CASES.values(), ids=CASES)
def test_what_a_qemu_does_is_told(has_answered, main, channels, words):
    text = explain(Evidence(has_answered, main, channels, method="zstd", machine="pc-q35-7.2"))
    for word in words:
        assert word in text


def test_a_destination_that_reports_its_failure():
    assert "memory size" in explain(Evidence(True, UNREAD, [CLOSED, CLOSED], has_failed=True))


@pytest.mark.parametrize(
    ("channels", "words"),
    [([UNREAD, UNREAD], ["channels 0, 1", "multifd off"]), ([CLOSED, UNREAD, OPEN], ["channel 1 unread", "fewer"])],
)
def test_a_destination_that_confirms_what_it_never_read(channels, words):
    """QEMU 10.0 without multifd, or told of fewer channels, completes with the RAM that it had before."""
    text = explain(Evidence(True, OPEN, channels, has_confirmed=True))
    assert "must not run" in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("channels", [[CLOSED, CLOSED], [OPEN, OPEN], [CLOSED, OPEN], []])
def test_one_that_confirms_and_has_read_all_is_not_accused(channels):
    assert explain(Evidence(True, OPEN, channels, has_confirmed=True)) == ""


def test_every_evidence_is_told_something_and_in_one_line():
    for has_answered, has_failed, main, *channels in product([False, True], [False, True], Seen, Seen, Seen):
        text = explain(Evidence(has_answered, main, channels, has_failed))
        assert text.isprintable()
        assert text
