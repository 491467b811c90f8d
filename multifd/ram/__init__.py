"""Where RAM lives: memory, raw images, QEMU's mapped-ram files."""
