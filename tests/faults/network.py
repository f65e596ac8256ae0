"""Hosts for a job under test: network namespaces around a switch, in one of its own, whose ports can
be closed. Nothing outside these namespaces is touched; all are deleted at the end.

  with Network(4) as network:
      network.hosts            names, for elastic.hosts
      network.cut(network.hosts[0]) ... network.heal(network.hosts[0])"""
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile

from slow_cables import SlowCables


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def missing():
    """Why there can be no hosts here; empty when there can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "ip or tc is missing"
    name = f"maniple-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", name], stderr=subprocess.DEVNULL).returncode:
        return "namespaces are not allowed"
    ip("netns", "del", name)
    return ""


class Network:
    """`slow`: all cables have the delay of slow_cables.py."""

    def __init__(self, count, slow=False):
        self.slow = slow
        prefix = f"maniple-{os.getpid()}"
        self.switch, self.head = prefix + "-switch", prefix + "-head"
        self.hosts = [f"{prefix}-host-{i}" for i in range(count)]
        self.off = tempfile.mkdtemp(prefix="maniple-off-")  # a file for each host without power

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def _start(self, undo):
        undo.callback(shutil.rmtree, self.off)
        self._add_namespace(self.switch, undo)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        self.ports = {host: f"port-{i}" for i, host in enumerate([self.head, *self.hosts])}
        self.addresses = {host: f"10.77.0.{i + 1}" for i, host in enumerate(self.ports)}
        for host in self.ports:
            self._add_namespace(host, undo)
        if self.slow:
            cables = SlowCables([((host, "eth0"), (self.switch, port)) for host, port in self.ports.items()])
            undo.callback(cables.close)
        for host in self.ports:
            self._plug_in(host)

    def _add_namespace(self, name, undo):
        ip("netns", "add", name)
        undo.callback(subprocess.run, ["ip", "netns", "del", name])

    def _plug_in(self, host):
        port = self.ports[host]
        if not self.slow:
            ip("link", "add", "eth0", "netns", host, "type", "veth", "peer", "name", port, "netns", self.switch)
        ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
        address = self.addresses[host]  # others remember which card has it
        ip("-n", host, "link", "set", "eth0", "address", "02:00:00:00:00:%02x" % int(address.split(".")[-1]))
        ip("-n", host, "addr", "add", address + "/24", "dev", "eth0")
        ip("-n", host, "link", "set", "lo", "up")
        ip("-n", host, "link", "set", "eth0", "up")

    # --- A job here --------------------------------------------------------------------------------
    def prefix(self):
        """Words before the command that launches the job: its coordinator is on the head."""
        return ["ip", "netns", "exec", self.head]

    def overrides(self):
        shell = os.path.join(os.path.dirname(os.path.abspath(__file__)), "host_shell")
        return ["elastic.hosts=" + ",".join(self.hosts), "elastic.address=10.77.0.1",
                f"elastic.remote={shell} {self.off} {{host}}"]

    # --- Disturbances ------------------------------------------------------------------------------
    def _port(self, host, state):
        ip("netns", "exec", self.switch, "bridge", "link", "set", "dev", self.ports[host], "state", str(state))

    def cut(self, host):
        """Frames vanish both ways; both ends believe that the cable is there."""
        self._port(host, 0)

    def heal(self, host):
        self._port(host, 3)

    def _tc(self, what, host, towards):
        place, device = (self.switch, self.ports[host]) if towards else (host, "eth0")
        limit = [] if what == "del" else ["tbf", "rate", "8bit", "burst", "1", "limit", "1"]
        subprocess.run(["ip", "netns", "exec", place, "tc", "qdisc", what, "dev", device, "root", *limit], check=True)

    def cut_one_way(self, host, towards):
        """All frames towards the host vanish, or all from it."""
        self._tc("add", host, towards)

    def heal_one_way(self, host, towards):
        self._tc("del", host, towards)

    def power_off(self, host):
        """No frame says goodbye, and the connections are gone with the host; their other ends hear nothing.
        Nothing can be started there until power_on. Not with slow cables."""
        open(f"{self.off}/{host}", "w").close()
        ip("-n", self.switch, "link", "set", self.ports[host], "down")
        for pid in subprocess.check_output(["ip", "netns", "pids", host], text=True).split():
            with contextlib.suppress(ProcessLookupError):  # it went with one before it
                os.kill(int(pid), signal.SIGKILL)

    def power_on(self, host):
        ip("-n", self.switch, "link", "del", self.ports[host])
        ip("netns", "del", host)
        ip("netns", "add", host)
        self._plug_in(host)
        os.remove(f"{self.off}/{host}")
