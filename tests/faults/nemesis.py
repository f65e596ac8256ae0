"""Faults by schedule: a file with one JSON object per line,

  {"after": 0.8, "do": "kill", "what": "train", "slice": 2, "position": 1}

after: seconds since the one before. do: kill, abort (SIGABRT), stop (SIGSTOP, for "seconds", then
SIGCONT), or drain (by ctl; readmitted after "seconds"). what: train, mpirun, agent, coordinator. A
process that is not there just then is waited for; the last slice that is left is not touched."""
import json
import signal
import subprocess
import time

SIGNALS = {"kill": signal.SIGKILL, "abort": signal.SIGABRT, "stop": signal.SIGSTOP}
# What a random schedule is made of, by how often.
MIX = ([("kill", "train")] * 10 + [("kill", "mpirun")] * 2 + [("kill", "agent")] * 2 + [("kill", "coordinator")] * 2
       + [("abort", "train")] * 2 + [("stop", "train"), ("stop", "agent"), ("stop", "coordinator")] + [("drain", "slice")] * 2)


def random_schedule(draw, count, slices, positions, lease, kinds=MIX, gap=0.8):
    schedule = []
    for _ in range(count):
        do, what = draw.choice(kinds)
        entry = {"after": round(draw.expovariate(1 / gap), 3), "do": do, "what": what}
        if what != "coordinator":
            entry["slice"] = draw.randrange(slices)
        if what == "train":
            entry["position"] = draw.randrange(positions)
        if do in ("stop", "drain"):  # some within the lease, some beyond
            entry["seconds"] = round(draw.uniform(0.1, 3) * lease, 3)
        schedule.append(entry)
    return schedule


def read_schedule(path):
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def write_schedule(path, schedule):
    with open(path, "w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in schedule)


def ctl(job, *words):
    return subprocess.run([job.program, "ctl", job.run, *words], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0


class Nemesis:
    def __init__(self, job):
        self.job, self.later, self.played = job, [], 0  # later: (time, function)

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while True:
            for due in [l for l in self.later if l[0] <= time.monotonic()]:
                self.later.remove(due)
                due[1]()
            if time.monotonic() >= end or self.job.process.poll() is not None:
                return
            time.sleep(0.01)

    def play(self, schedule):
        for entry in schedule:
            self.wait(entry["after"])
            while self.job.process.poll() is None and not self.strike(entry):
                self.wait(0.05)
            self.played += self.job.process.poll() is None
        while self.later:
            self.wait(0.1)

    def strike(self, entry):
        """False: not possible just now."""
        job, do, slice = self.job, entry["do"], entry.get("slice")
        alive = {s for _, _, s in job.processes("train")}
        if slice is not None and len(alive) < 2:
            return False
        again = time.monotonic() + entry.get("seconds", 0)
        if do == "drain":
            if slice not in alive or not ctl(job, "drain", str(slice)):
                return False
            self.later.append((again, lambda: ctl(job, "readmit", str(slice))))
            return True
        position = entry.get("position", 0)
        # Failures in a row are forgiven, else a slice soon waits longer than the job lasts.
        if slice is not None:
            ctl(job, "readmit", str(slice))
        pid = job.kill(entry["what"], slice, position, SIGNALS[do])
        if pid is None:
            return False
        if do == "stop":
            self.later.append((again, lambda: job.send(pid, signal.SIGCONT)))
        return True
