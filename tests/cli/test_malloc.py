"""What was freed is not kept."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

KEPT = """
import ctypes
from multifd.cli.malloc import OF_A_SERVICE, keep

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc.mallinfo2.restype = Mallinfo2
{before}
for mib in 16, 8:
    at = libc.malloc(mib << 20)
    ctypes.memset(at, 1, mib << 20)
    libc.free(at)
print(libc.mallinfo2().fordblks >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no mallinfo2: glibc before 2.33, or none")
@pytest.mark.parametrize(("before", "is_kept"), [("", True), ("keep(OF_A_SERVICE)", False)])
def test_a_large_buffer_that_was_freed_does_not_make_malloc_keep_the_next(before, is_kept):
    code = KEPT.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (int(done.stdout) >= 7) == is_kept
