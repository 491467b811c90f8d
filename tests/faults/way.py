"""The migrations in which something goes wrong: where the memory comes from and goes to, and which processes do it.

Rules of this file: it says what there is to choose from; `faults.matrix` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("source", "destination", "relay")
FILES = ("raw", "mapped-ram", "streams")
"""Kinds of memory that lie in files."""
NAMES = {
    "raw": "raw image", "mapped-ram": "capture", "streams": "stored streams", "arena": "live arena", "qemu": "QEMU",
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A kind of migration.

    Args:
        source, destination: where the memory is, words of `NAMES`.
        roles: whose processes there always are. A source alone stores into a folder, a destination alone fetches
            from one, a relay in a destination's place keeps what it passes on.
        weight: how often it is drawn.
    """

    source: str
    destination: str
    roles: tuple[str, ...] = ("source", "destination")
    weight: int = 4

    @property
    def writer(self) -> str:
        """Whose process the memory's new place belongs to."""
        return self.roles[-1]

    @property
    def processes(self) -> tuple[str, ...]:
        """Whose processes there can be: between two ends there may be a relay."""
        return (*self.roles, "relay") if self.roles == ("source", "destination") else self.roles

    @property
    def own(self) -> tuple[str, ...]:
        """Those of them that are multifd's."""
        return tuple(role for role in self.processes if not self.is_qemu(role))

    @property
    def has_qemu(self) -> bool:
        """Whether an end is a QEMU."""
        return "qemu" in (self.source, self.destination)

    def is_qemu(self, role: str) -> bool:
        """Whether that is a QEMU's process."""
        return {"source": self.source, "destination": self.destination}.get(role) == "qemu"

    @property
    def writers(self) -> tuple[str, ...]:
        """Whose process writes into files."""
        return (self.writer,) if self.destination in FILES else ()

    @property
    def readers(self) -> tuple[str, ...]:
        """Whose process reads files."""
        return (self.roles[0],) if self.source in FILES else ()

    @property
    def words(self) -> str:
        """For the table."""
        source, destination = NAMES[self.source], NAMES[self.destination]
        if self.roles == ("source",):
            return f"{source}, stored as streams" if self.source != "streams" else "stored streams, squeezed"
        if self.roles == ("destination",):
            return f"{source}, fetched as a {destination}"
        if self.roles == ("source", "relay"):
            return f"{source}, kept by a relay"
        return f"{source} to {destination}"


WAYS = (
    Way("raw", "raw", weight=10),
    Way("mapped-ram", "mapped-ram", weight=10),
    Way("arena", "arena", weight=10),
    Way("raw", "streams"),
    Way("mapped-ram", "streams"),
    Way("arena", "streams"),
    Way("streams", "raw"),
    Way("streams", "mapped-ram"),
    Way("streams", "streams", weight=2),
    Way("raw", "streams", ("source",)),
    Way("mapped-ram", "streams", ("source",)),
    Way("streams", "streams", ("source",)),
    Way("streams", "mapped-ram", ("destination",)),
    Way("streams", "raw", ("destination",), weight=2),
    Way("raw", "streams", ("source", "relay"), weight=3),
    Way("qemu", "mapped-ram", weight=2),
    Way("qemu", "streams", weight=2),
    Way("mapped-ram", "qemu", weight=2),
    Way("streams", "qemu", weight=2),
)

_READING = {
    "raw": {"read": 10}, "mapped-ram": {"read": 200}, "arena": {}, "qemu": {}, "streams": {"read": 20}
}  # fmt: skip
_SENDING = {"raw": {"send": 60}, "mapped-ram": {"send": 40}, "arena": {"send": 200}, "streams": {"send": 30}}
_WRITING = {
    "raw": {"write": 200, "sync": 9, "resize": 1, "name": 2, "make": 2, "remove": 2},
    "mapped-ram": {"write": 200, "sync": 6, "resize": 1, "name": 2, "make": 2, "remove": 2},
    "streams": {"write": 30, "sync": 20, "name": 1, "make": 7},
    "arena": {},
}  # fmt: skip


def calls(role: str, way: Way) -> dict[str, int]:
    """Which system calls an end makes, and about how many of each: moments are drawn from those."""
    found: dict[str, int] = {}
    if role in way.readers:
        found |= _READING[way.source]
    if role in way.writers:
        found |= _WRITING[way.destination]
    match role:
        case "source":
            found |= {**_SENDING[way.source], "recv": 30, "connect": 4}
        case "destination":
            found |= {"send": 4, "recv": 40, "accept": 4}
        case "relay":
            found |= {"send": 28, "recv": 36, "connect": 3, "accept": 4}
    return found
