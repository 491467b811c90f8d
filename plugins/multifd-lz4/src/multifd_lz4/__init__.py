"""Method lz4 of multifd: `multifd_lz4.method`, and its hooks in native code, `multifd_lz4.native`."""
