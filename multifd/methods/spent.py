"""What a channel's packets took, and what that says of the link, the receiver and the processors; arithmetic alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY = 4 << 20
"""Bytes of pages of which is known what they took: 8 packets."""
WAITING = 0.08
"""Share of its time that a channel waits in between hooks if it is held up; less may be a matter of chance."""
BUSY = 0.5
"""Share of its time in which a link is busy that the channel waits for, and sends at the rate that the kernel counts;
if it is less, the wait is not for the link."""


@dataclass(slots=True)
class Spent:
    """What packets in a row at one level took, in seconds and bytes.

    Args:
        hook_s, hook_cpu_s: in the method's hook, by the clock and of a processor.
        gap_s, gap_cpu_s: from one hook to the next: sending, and whatever the engine does.
        gap_queue_s: of the gaps, what passed while others had the processors.
        page_bytes, payload_bytes: in and out.
        idle_s: by the kernel's count the link had nothing to do for the channel, or the receiver no room; 0 if nobody
            counts.
        link_s: that the payload takes at the rate that the kernel says of the network; 0: it says nothing.
    """

    hook_s: float = 0.0
    hook_cpu_s: float = 0.0
    gap_s: float = 0.0
    gap_cpu_s: float = 0.0
    page_bytes: float = 0.0
    payload_bytes: float = 0.0
    gap_queue_s: float = 0.0
    idle_s: float = 0.0
    link_s: float = 0.0

    def add(self, news: Spent) -> None:
        """Add the news, and forget as much of what is here as they outweigh."""
        keep = math.exp(-news.page_bytes / MEMORY)
        for name in Spent.__slots__:
            setattr(self, name, getattr(self, name) * keep + getattr(news, name))

    @property
    def wire_s(self) -> float:
        """Seconds for each byte of payload."""
        return (self.hook_s + self.gap_s) / self.payload_bytes

    @property
    def made_s(self) -> float:
        """Seconds for each byte of payload, but for those of waiting."""
        return (self.hook_s + self.gap_cpu_s + self.gap_queue_s) / self.payload_bytes

    @property
    def kernel_s(self) -> float:
        """Seconds for each byte of payload by the kernel's word on the network; 0: it says nothing."""
        return self.link_s / self.payload_bytes

    @property
    def pace_s(self) -> float:
        """Seconds for each byte of pages."""
        return (self.hook_s + self.gap_s) / self.page_bytes

    @property
    def contention(self) -> float:
        """Time over processor time, of all that was not waiting."""
        cpu_s = self.hook_cpu_s + self.gap_cpu_s
        return max(1.0, (self.hook_s + self.gap_cpu_s + self.gap_queue_s) / cpu_s) if cpu_s else 1.0

    @property
    def waited_s(self) -> float:
        """For the link, or the receiver."""
        return self.gap_s - self.gap_cpu_s - self.gap_queue_s

    @property
    def is_held_up(self) -> bool:
        """Whether the link held it up, or, if nobody counts, somebody else: it waited, the link was busy, and the
        kernel counts no more than it sent."""
        total_s = self.hook_s + self.gap_s
        is_no_faster = not self.link_s or self.link_s >= BUSY * total_s
        return self.waited_s >= WAITING * total_s and self.is_busy and is_no_faster

    @property
    def is_busy(self) -> bool:
        """Whether the link was, as far as anybody knows."""
        return self.idle_s <= (1 - BUSY) * (self.hook_s + self.gap_s)

    @property
    def is_contended(self) -> bool:
        """Whether more passed without a processor than in waiting, which may then be for the receiver's."""
        lost_s = self.hook_s - self.hook_cpu_s + self.gap_queue_s
        return lost_s > max(self.waited_s, WAITING * (self.hook_s + self.gap_s))
