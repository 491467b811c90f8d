"""A userfaultfd with asynchronous write protection, by the system call or by /dev/userfaultfd.

A container's seccomp profile may deny the system call while the device is open to the process: permission to the
device is a matter of its file alone. Sources: Documentation/admin-guide/mm/userfaultfd.rst and
include/uapi/linux/userfaultfd.h of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from multifd.live.tracker import Unavailable

# The generic system call and ioctl numbers; architectures not listed here number them differently.
_SYSTEM_CALL = {"x86_64": 323, "aarch64": 282, "riscv64": 282}
_DEVICE = "/dev/userfaultfd"
_IOC_NEW = 0xAA00  # USERFAULTFD_IOC_NEW
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1  # UFFD_USER_MODE_ONLY
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA
_FEATURES = 1 << 15 | 1 << 13 | 1 << 12  # WP_ASYNC, WP_UNPOPULATED, WP_HUGETLBFS_SHMEM


def open_userfaultfd() -> int:
    """A descriptor that can protect memory asynchronously; the caller closes it.

    Raises:
        Unavailable: neither way gives one; the text says what each answered.
    """
    if platform.system() != "Linux":
        raise Unavailable(f"not on {platform.system()}")
    refusals = []
    for name, open_ in (("the system call userfaultfd", _by_system_call), (_DEVICE, _by_device)):
        try:
            fd = open_()
        except OSError as e:
            refusals.append(f"{name}: {e.strerror or e}")
            continue
        try:
            fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("3Q", _UFFD_API, _FEATURES, 0)))
        except OSError as e:
            os.close(fd)
            if e.errno != errno.EINVAL:
                raise Unavailable(f"{name} gives one that cannot be used: {e.strerror}") from e
            raise Unavailable(
                f"Linux {platform.release()}, {platform.machine()}, has no asynchronous write protection; "
                "6.7 and later have on x86-64"
            ) from None
        return fd
    raise Unavailable(
        f"no userfaultfd ({'; '.join(refusals)}); a container's seccomp profile, sysctl vm.unprivileged_userfaultfd or "
        "the device's permissions forbid it"
    )


def _by_system_call() -> int:
    number = _SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"its number is not known on {platform.machine()}")
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, _FLAGS)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def _by_device() -> int:
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, _IOC_NEW, _FLAGS)
    finally:
        os.close(device)
