"""The parameters of the simulated machine: each number, its source, and how it follows from it.

Rules of this file:

* No number comes from a row that the simulation is scored against (`multifd_qpl.published.SCORED`): neither QEMU
  commit f6fe9fea99, nor the cover letter's IAA rows at 4 and 8 channels.
* The file was committed before the simulation was run with these numbers, and is not changed to bring a result
  nearer to a published one. An error of the prediction is reported, with its reason if one is known.
* Whoever chose the parameters knew the published rows, so the choice follows rules that leave little freedom:
  arithmetic on other rows of the letter, or the one measurement by a third party.

The device's rate is the number that matters most. Three were published:

======================= ======================================================================= ==========
13 GB/s by 4 devices    Kim et al., "LILO", HPCA 2026: measured, Granite Rapids, 1 MiB pieces   **taken**
3.4 GB/s by 1 device    qemu-devel, May and June 2024, by the author of f6fe9fea99: 4 threads,  not taken
                        1 device, so perhaps the very run that is predicted
4 GB/s by 1 device      Intel, qemu-devel, January 2024: what the device is made for            not taken
======================= ======================================================================= ==========

`OTHER_RATES` are the two that were not taken, for the table of sensitivity.
"""

from __future__ import annotations

from dataclasses import dataclass

from multifd_qpl import published

_PAGE = 4096
_ENGINES = 8

_DEVICE_BYTES_PER_S = 13e9 / 4
OTHER_RATES = {"3.4 GB/s": 3.4e9, "4 GB/s": 4.0e9}
"""Bytes a second that one device compresses, by the sources that were not taken."""


def engine_ns(bytes_per_s: float) -> float:
    """One engine's time for a page if a device's engines compress `bytes_per_s` together."""
    return _ENGINES * _PAGE / bytes_per_s * 1e9


_ENGINE_NS = engine_ns(_DEVICE_BYTES_PER_S)

_ZERO_CHECK_NS = 6182e6 / (100 * 2**30 / _PAGE)
_ZERO_SHARE = published.GUEST_PAGES / published.NORMAL_PAGES - 1
_CHECK_NS = _ZERO_CHECK_NS * (1 + _ZERO_SHARE)


def _thread_ns(row: published.Published) -> float:
    """A channel thread's time for each normal page."""
    return row.thread_ns / published.NORMAL_PAGES


def _wire_bytes(row: published.Published) -> float:
    """Of each normal page, with its part of the header."""
    return row.wire_bytes / published.NORMAL_PAGES


def _stream_bytes(row: published.Published) -> int:
    return round(_wire_bytes(row) - published.HEADER_BYTES / 128 - 4)


_SEND_NS_PER_BYTE = (_thread_ns(published.NONE_2) - _CHECK_NS) / _wire_bytes(published.NONE_2)
_LAST_PAGE_NS = _ENGINE_NS / 128
_SUBMIT_NS = _thread_ns(published.IAA_2) - _CHECK_NS - _SEND_NS_PER_BYTE * _wire_bytes(published.IAA_2) - _LAST_PAGE_NS
_SOFTWARE_NS = _thread_ns(published.SOFTWARE_4) - _CHECK_NS - _SEND_NS_PER_BYTE * _wire_bytes(published.SOFTWARE_4)


@dataclass(frozen=True)
class Machine:
    """What is simulated; ns is nanoseconds of virtual time. "Letter" is that of `published.CALIBRATION`."""

    devices: int = 1
    engines: int = _ENGINES
    """Of each device: QEMU, docs/devel/migration/qpl-compression.rst."""
    queue_entries: int = 128
    """Of each device's one shared work queue: the same document's sample configuration."""
    engine_ns: float = _ENGINE_NS
    """One engine, one page compressed: 10082 ns, see the top of this file."""
    inflate_speedup: float = 30 / 4
    """Compression over decompression: one IAA compresses 4 GB/s and decompresses 30 (Intel, January 2024)."""
    jitter: float = 0.2
    """A page takes from 1 - this to 1 + this of `engine_ns`, so that jobs end out of order. Assumed."""
    submit_ns: float = _SUBMIT_NS
    """A submission that is accepted. Calibrated, letter, IAA, 2 channels for 4 devices, where the threads are the
    limit: what remains of a thread's time for a page after zero detection, sending, and a page's part of waiting
    for the packet's last one (`engine_ns` / 128)."""
    refusal_ns: float = _SUBMIT_NS
    """A submission that is refused. Assumed to cost what an accepted one costs: both are one ENQCMD."""
    poll_ns: float = 100.0
    """The least time between two looks at a job or a queue. Assumed."""
    software_ns: float = _SOFTWARE_NS
    """A page by the software job. Calibrated, letter, software, 4 channels: what remains of a thread's time after
    zero detection and sending. (9.8 us were measured on a Zen 4.)"""
    zero_check_ns: float = _ZERO_CHECK_NS
    """A page looked at for zeros: 100 GiB in 6182 ms by one channel thread (zero-page detection series v5, March
    2024, Xeon 8457C)."""
    zero_share: float = _ZERO_SHARE
    """Zero pages for each other page, evenly spread: the letter's 64 GiB, of which 15.24 million pages were sent."""
    fault_ns: float = 9000.0
    """A page fault that is repaired: the mean of 25965, qpl-compression.rst."""
    hardware_bytes: int = _stream_bytes(published.IAA_2)
    """A page's stream by the device. Letter, IAA, 2 channels, less the header and the length."""
    software_bytes: int = _stream_bytes(published.SOFTWARE_4)
    """The same by the software job. Letter, software, 4 channels."""
    send_ns_per_byte: float = _SEND_NS_PER_BYTE
    """A channel thread's time to send. Calibrated, letter, none, 2 channels: what zero detection leaves of a
    thread's time. (66782 mbps is not yet the link's limit.)"""
    link_ns_per_byte: float = 8e3 / published.NONE_8.mbps
    """All channels together. Letter, none, 8 channels: 86488 mbps."""
    slack_ns: float = 2000.0
    """How far a channel's virtual time may run ahead of another's: what the simulation costs in real time against
    how exactly submissions interleave. Chosen."""
