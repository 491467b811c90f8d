"""The bed of links itself: two places, one way between them, whose rate may change while something passes."""

from __future__ import annotations

import mmap
import os
import re
import socket
import subprocess

from shaped_link import Changes, Phase, ShapedLink

import multifd

MEGABIT = 10**6


def qdisc(link: ShapedLink) -> str:
    """What the kernel says of the link's source."""
    with link.source():
        return subprocess.run(["tc", "-s", "qdisc", "show", "dev", "link0"], capture_output=True, text=True).stdout


def test_a_migration_passes_through_the_shaped_link(link, receiver, image):
    into = mmap.mmap(-1, len(image))
    with link.destination():
        destination = receiver(into, f"tcp:{link.address}:0")
    with link.source():
        sent = multifd.send(image, destination.uri, "zstd", channels=2)
    destination.join()
    assert into[:] == image
    text = qdisc(link)
    assert "rate 100Mbit" in text
    assert int(re.search(r"Sent (\d+) bytes", text)[1]) > sent.transferred_bytes


def test_the_rate_changes(link):
    with Changes(link, [Phase(200 * MEGABIT, 60), Phase(MEGABIT)]):
        assert "rate 200Mbit" in qdisc(link)
    link.shape(2500 * MEGABIT)
    assert "rate 2500Mbit" in qdisc(link) or "rate 2.5Gbit" in qdisc(link)


def test_nobody_else_is_in_it(link):
    """Two links at the same time have the same addresses, and this thread is where it was afterwards."""
    before = os.readlink("/proc/thread-self/ns/net")
    with ShapedLink(MEGABIT) as other:
        for each in (link, other):
            with each.destination():
                server = socket.create_server((each.address, 4444))
                assert os.readlink("/proc/thread-self/ns/net") != before
            with server, each.source():
                socket.create_connection((each.address, 4444), 10).close()
    assert os.readlink("/proc/thread-self/ns/net") == before
