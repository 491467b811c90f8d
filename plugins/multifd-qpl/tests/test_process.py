"""A channel belongs to the process that set it up; what a fork inherits is a copy, and no device."""

from __future__ import annotations

import child

_FRAME = """
import os, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside numpy's threads
from multifd.errors import MethodError
from multifd_qpl.method import QplMethod, QplOptions, choose
from multifd_qpl.simulator import SimulatedIaa
from qpl_ends import Ends, make_pages

def in_child(body):
    pid = os.fork()
    if not pid:
        try:
            body()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0

def expect_error(call, *words):
    try:
        call()
    except MethodError as e:
        assert all(word in str(e) for word in words), e
    else:
        raise AssertionError("no error")
"""


def test_hooks_are_refused_in_a_fork(libqpl: str) -> None:
    code = """
with Ends(QplMethod(QplOptions(hardware="off", software="libqpl"))) as ends:
    source = make_pages(4096, 8)
    payload = ends.send(source)
    def body():
        expect_error(lambda: ends.send(source), "forked", str(os.getppid()))
        expect_error(lambda: ends.receive(payload, bytearray(len(source))), "after the fork")
        ends.__exit__()
    in_child(body)
    target = bytearray(len(source))
    ends.receive(ends.send(source), target)
    assert target == source
"""
    child.run(_FRAME + code, MULTIFD_QPL_LIBRARY=libqpl)


def test_a_fork_shares_no_buffer(libqpl: str) -> None:
    """What a child writes into the inherited payload is its own."""
    code = """
with Ends(QplMethod(QplOptions(hardware="off", software="libqpl"))) as ends:
    payload = ends.send(make_pages(4096, 8))
    iov = ends.sender.iov
    def body():
        for buffer in iov:
            if not buffer.readonly:
                buffer[:] = bytes(len(buffer))
    in_child(body)
    assert b"".join(iov) == payload
"""
    child.run(_FRAME + code, MULTIFD_QPL_LIBRARY=libqpl)


def test_a_fork_uses_no_device_of_its_parent() -> None:
    """Software is still there, and the reason is said."""
    code = """
with SimulatedIaa() as iaa:
    assert choose(QplOptions(), iaa.library).engine == "iaa"
    def body():
        choice = choose(QplOptions(), iaa.library)
        assert choice.engine == "isal" and "forked" in choice.reason, choice
        assert not choose(QplOptions(hardware="required"), iaa.library).engine
    in_child(body)
"""
    child.run(_FRAME + code)


def test_a_fork_sets_up_its_own(libqpl: str) -> None:
    code = """
choose(QplOptions(software="libqpl"))
def body():
    with Ends(QplMethod(QplOptions(software="libqpl"))) as ends:
        source = make_pages(4096, 8)
        target = bytearray(len(source))
        ends.receive(ends.send(source), target)
        assert target == source
in_child(body)
"""
    child.run(_FRAME + code, MULTIFD_QPL_LIBRARY=libqpl)
