"""An elastic job under test: started as a person starts it, observed through its run folder and
/proc, disturbed by signals. Only processes whose command line names its run folder are touched."""
import json
import os
import signal
import subprocess
import time


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def lines(path):
    for line in read(path).splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            pass  # being written


class Skipped(Exception):
    """A scenario cannot be played on this machine."""


class Job:
    """`overrides`: dotted config overrides of tests/faults/tiny.yaml. `network`: the hosts
    of the slices, slice n on host n (network.py, relay.py); without one all run here."""

    def __init__(self, program, config, run, overrides=(), network=None, environment=None):
        self.program, self.config, self.run = program, config, run
        self.network = network
        self.environment = {**os.environ, **(environment or {})}
        self.overrides = [*overrides, *(network.overrides() if network else ())]
        self.process = None
        self.flips = False  # bits on purpose, in some start
        self.snapshots = []  # of the coordinator's log, when it was killed

    def start(self):
        self.flips |= any(override.startswith("faults.") for override in self.overrides)
        self.output = open(self.run + ".out", "ab")
        self.process = subprocess.Popen(
            [*(self.network.prefix() if self.network else ()), self.program, "launch", self.config, "run.dir=" + self.run, *self.overrides],
            stdout=self.output, stderr=subprocess.STDOUT, env=self.environment)
        return self

    def wait(self, seconds=120):
        """The exit code; None when the job had to be killed."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    # --- What runs -------------------------------------------------------------------------------
    def processes(self, role=None, slice=None):
        """(pid, role, slice): launch, coordinator, agent, mpirun, train, ssh."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            words = read(f"/proc/{name}/cmdline").split("\0")
            if not any(word.startswith(self.run + "/") or word == "run.dir=" + self.run for word in words):
                continue
            what = os.path.basename(words[0])
            if what not in ("mpirun", "ssh"):
                what = words[1] if len(words) > 1 else what
            environment = dict(w.split("=", 1) for w in read(f"/proc/{name}/environ").split("\0") if "=" in w)
            which = int(environment.get("MANIPLE_SLICE", -1))
            if role in (None, what) and slice in (None, which):
                found.append((int(name), what, which))
        return sorted(found)

    def pid(self, role, slice=None, position=0):
        found = self.processes(role, slice)
        return found[position][0] if position < len(found) else None

    def send(self, pid, number):
        try:
            os.kill(pid, number)
            return True
        except (ProcessLookupError, TypeError):
            return False

    def kill(self, role, slice=None, position=0, number=signal.SIGKILL):
        """The pid; None when there is no such process."""
        pid = self.pid(role, slice, position)
        if not self.send(pid, number):
            return None
        if role == "coordinator" and number == signal.SIGKILL:
            self.snapshots.append(self.decision_log())
        return pid

    # --- What it has done ------------------------------------------------------------------------
    def rows(self):
        return {r["step"]: r for r in lines(self.run + "/metrics.jsonl") if "loss" in r}

    def last_step(self):
        return max(self.rows(), default=0)

    def events(self, name=None):
        return [e for e in lines(self.run + "/events.jsonl") if name in (None, e.get("event"))]

    def epochs(self):
        """Numbers of the epochs that have trained."""
        return sorted({int(e["text"].split()[1]) for e in self.events("run")})

    def commits(self, slice):
        """The last step that the slice has committed."""
        return max((e["step"] for e in self.journal(slice) if e["event"] == "commit"), default=0)

    def journal(self, slice):
        return list(lines(f"{self.run}/elastic/slice-{slice}.jsonl"))

    def decision_log(self):
        try:
            with open(self.run + "/elastic/decisions.log", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def until(self, condition, seconds=60, what="the condition"):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"waited in vain for {what}")
            time.sleep(0.005)

    def until_step(self, step):
        self.until(lambda: self.last_step() >= step, 180, f"step {step}")

    def until_epochs(self, count):
        self.until(lambda: len(self.epochs()) >= count, 180, f"{count} epochs")

    def until_event(self, name, count=1):
        self.until(lambda: len(self.events(name)) >= count, 180, f"{count} x {name}")
