"""The pages as they are: flag value 0 (MULTIFD_FLAG_NOCOMP), migration/multifd-nocomp.c of QEMU 10.0."""

from __future__ import annotations

from typing import ClassVar

from multifd.method import (
    Availability,
    Capabilities,
    CodecError,
    Geometry,
    MethodOptions,
    MultifdMethods,
    RecvParams,
    SendParams,
)


class NoneMethod(MultifdMethods):
    """No compression. The iov is the pages themselves, so nothing is copied in Python."""

    name = "none"
    api = 1
    wire_code: ClassVar[int | None] = 0x00
    capabilities = Capabilities(streaming=False, page_independent=True, deterministic=True, verbatim=True)

    @classmethod
    def availability(cls, options: MethodOptions) -> Availability:
        """Everywhere."""
        return Availability(True, "copy")

    def max_payload(self, geometry: Geometry) -> int:
        """The pages themselves."""
        return geometry.page_size * geometry.page_count

    def send_prepare(self, p: SendParams) -> None:
        """The runs of the pages."""
        p.iov.extend(p.pages.runs())

    def recv(self, p: RecvParams) -> None:
        """Copy the payload; the engine reads straight into the pages instead."""
        if len(p.payload) != p.pages.nbytes:
            raise CodecError(f"payload of {len(p.payload)} bytes, expected {p.pages.nbytes}")
        p.pages.scatter(p.payload)
