"""Captures and restores of QEMU guests, end to end: QEMU's monitor on one hand, `multifd.api` on the other."""
