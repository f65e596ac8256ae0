"""Stops one thread of a process, the first, and no other: what an endless loop of the training thread
looks like from outside, the heartbeat alive. By ptrace, so the caller's thread must stay."""
import ctypes
import os

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(request, pid):
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")


class StalledThread:
    def __init__(self, pid):
        self.pid = pid
        _ptrace(SEIZE, pid)
        _ptrace(INTERRUPT, pid)
        os.waitpid(pid, 0x40000000)  # until it stands still (__WALL)

    def ended(self):
        """Whether the process was killed. Its parent hears of it only after this was asked."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | 0x40000000)
        return pid == self.pid and (os.WIFEXITED(status) or os.WIFSIGNALED(status))
