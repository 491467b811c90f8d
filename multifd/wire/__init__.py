"""QEMU's multifd wire and main stream, sans-IO: bytes in, values out, and the other way."""
