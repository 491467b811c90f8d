"""The driver for memory that stands still: everything in one round."""

from __future__ import annotations

from multifd.engine.sender import Sender
from multifd.engine.sync import all_pages
from multifd.pages import Geometry
from multifd.ram.block import Source
from multifd.stats import Result


def send_still(sender: Sender, source: Source) -> Result:
    """Send memory that nobody writes meanwhile.

    Args:
        sender: not opened yet; used up afterwards.
        source: what it sends.

    Returns:
        The figures; the destination has confirmed that everything is in place.

    Raises:
        MultifdError: what went wrong; ``result`` has the figures up to then.
    """
    with sender:
        sender.open()
        sender.stats.dirty_sync_count += 1
        sender.round(all_pages(source.blocks, Geometry.of(source.machine.page_size)))
        sender.switch_over()
        sender.stats.dirty_sync_count += 1
        sender.finish()
    return sender.result
