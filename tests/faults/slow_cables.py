"""Cables between network namespaces with a delay, and now and then a stall, for kernels without netem:
pairs of tap devices, between which a process of its own carries the frames."""
import ctypes
import fcntl
import os
import random
import select
import signal
import struct
import time
from collections import deque

DELAY, STALL, STALL_EVERY = 0.025, 0.2, 3.0  # seconds, one way through a cable; between stalls of one


def _tap(namespace, name):
    with open("/var/run/netns/" + namespace) as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns " + namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF: a tap, plain frames
    return fd


def _carry(cables):
    other = {}
    for a, b in cables:
        other[a], other[b] = b, a
    waiting = {fd: deque() for fd in other}  # frames that came in at fd: (when they leave, frame)
    stalled_until = dict.fromkeys(other, 0)
    draw = random.Random(9)
    next_stall = {a: time.monotonic() + draw.expovariate(1 / STALL_EVERY) for a, _ in cables}
    while True:
        now = time.monotonic()
        for a in next_stall:
            if now >= next_stall[a]:
                stalled_until[a] = stalled_until[other[a]] = now + STALL
                next_stall[a] = now + draw.expovariate(1 / STALL_EVERY)
        first = now + 0.05
        for fd, frames in waiting.items():
            while frames and max(frames[0][0], stalled_until[fd]) <= now:
                try:
                    os.write(other[fd], frames.popleft()[1])
                except OSError:
                    pass  # the other end is down
            if frames:
                first = min(first, max(frames[0][0], stalled_until[fd]))
        for fd in select.select(list(other), [], [], max(0, first - time.monotonic()))[0]:
            try:
                waiting[fd].append((time.monotonic() + DELAY, os.read(fd, 65536)))
            except OSError:
                pass


class SlowCables:
    """Ends are ((namespace, device), (namespace, device)); the devices are there when it is made."""

    def __init__(self, ends):
        ready, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                cables = [(_tap(*a), _tap(*b)) for a, b in ends]
                os.write(say, b"1")
                _carry(cables)
            finally:
                os._exit(1)
        os.close(say)
        good = os.read(ready, 1)
        os.close(ready)
        if not good:
            os.waitpid(self.pid, 0)
            raise OSError("no tap devices here")

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
