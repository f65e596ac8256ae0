#!/usr/bin/env python3
"""What a lost slice costs: kills or stops random processes of a running job and takes the times from
the survivors' journals. All clocks are one machine's monotonic clock.

  bench/recovery.py build/bin/maniple --kills 50 [--what rank|mpirun|agent|stop]

--what stop: SIGSTOP to a rank, whose slice is then silent; "end" is that moment, and the lease is
taken off from detection and beyond. Printed as p50, p95:
  dying      kill(2) -> the process has ended (an observer with a pidfd)
  detection  end -> the last survivor was told to stop (negative: before the process had ended)
  beyond     end -> the first commit of the next epoch, less the rest of the running unit (at most a
             unit) and a step at S - 1 slices, medians of the same run
  join       registration of the replacement -> its first commit
  hello      mpirun with this program and LibTorch, which only says what the machine is (maniple
             doctor), as often as kills, under the load of the job"""
import argparse
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here + "/../tests/faults")
from job import Job


def milestones(job, slice):
    """What a slice did; its journal without the lines about where time went."""
    return [e for e in job.journal(slice) if e["event"] != "spent"]


def microseconds():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def kill_and_watch(pid):
    """(time of the kill, time of the process's end)"""
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    at = microseconds()
    os.kill(pid, signal.SIGKILL)
    poll.poll(10000)
    end = microseconds()
    os.close(fd)
    return at, end


def stop(pid):
    at = microseconds()
    os.kill(pid, signal.SIGSTOP)
    return at, at


def hello(program):
    """Seconds that mpirun with a process of LibTorch takes."""
    at = microseconds()
    subprocess.run(["mpirun", "-n", "1", program, "doctor"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return microseconds() - at


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--what", choices=["rank", "mpirun", "agent", "stop"], default="rank")
    parser.add_argument("--lease", type=float, default=0.5)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=3, help="mean seconds between kills")
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the job is taken down
    draw = random.Random(a.seed)
    folder = tempfile.mkdtemp(prefix="maniple-recovery-")
    shutil.copy(here + "/../tests/data/tinyshakespeare-200k.txt", folder + "/text.txt")
    shutil.copy(here + "/../tests/faults/tiny.yaml", folder)
    os.chdir(folder)
    job = Job(os.path.realpath(a.program) if os.path.isabs(a.program) else os.path.join(here, "..", a.program),
              folder + "/tiny.yaml", folder + "/run",
              [f"parallel.slices={a.slices}", "train.steps=1000000", f"elastic.lease={a.lease}", "elastic.max_restarts=1000000",
               "metrics.fingerprint_every=0", *a.overrides]).start()
    kills, hellos = [], []
    role = {"stop": "train", "rank": "train"}.get(a.what, a.what)
    silent = round(1e6 * a.lease) if a.what == "stop" else 0
    try:
        job.until_step(20)
        while len(kills) < a.kills:
            time.sleep(draw.uniform(0.5, 1.5) * a.pause)
            members = {s for _, _, s in job.processes("train")}
            last = {s: (milestones(job, s) or [{"event": "none"}])[-1] for s in members}
            training = [s for s, e in last.items() if e["event"] == "commit" and microseconds() - e["us"] < 300000]
            if len(training) < max(3, a.slices - 1):
                continue
            slice = draw.choice(training)
            pid = job.pid(role, slice)
            if pid is None:
                continue
            # Its failures are forgiven, else it would be started again later every time.
            subprocess.run([job.program, "ctl", job.run, "readmit", str(slice)], stdout=subprocess.DEVNULL)
            epoch = milestones(job, training[0])[-1]["epoch"]
            kills.append((slice, epoch, len(training), *(stop if silent else kill_and_watch)(pid)))
            hellos.append(hello(job.program))
            print(f"kill {len(kills)} of {a.kills}: slice {slice} at step {job.last_step()}", file=sys.stderr)
        time.sleep(2)
    finally:
        job.process.terminate()
        job.wait(30)
    journals = {s: milestones(job, s) for s in range(a.slices)}
    commits = sorted((e["us"], s, e["epoch"]) for s, j in journals.items() for e in j if e["event"] == "commit")
    sizes = {}  # slices of an epoch
    for us, s, epoch in commits:
        sizes.setdefault(epoch, set()).add(s)
    gaps = {}   # members -> step times
    for s, j in journals.items():
        for before, after in zip(j, j[1:]):
            if before["event"] == after["event"] == "commit" and before["epoch"] == after["epoch"]:
                gaps.setdefault(len(sizes[after["epoch"]]), []).append(after["us"] - before["us"])
    step = {n: statistics.median(g) for n, g in gaps.items() if len(g) > 20}
    rows = []
    for slice, epoch, members, at, end in kills:
        halts = [e["us"] for s, j in journals.items() for e in j
                 if s != slice and e["event"] == "halt" and e["epoch"] == epoch]
        after = [us for us, s, e in commits if e > epoch and us > end and s != slice]
        if not halts or not after:
            continue
        left = members - 1
        step_left = step.get(left, step.get(members, 0))
        unit = step_left / (12 / left)
        rows.append((end - at, max(halts) - end - silent, after[0] - end - silent - step_left - unit))
    joins = []
    for s, j in journals.items():
        for e in j:
            if e["event"] == "register" and e["life"] > 1:
                first = [c["us"] for c in j if c["life"] == e["life"] and c["event"] == "commit"]
                if first:
                    joins.append(first[0] - e["us"])
    for n in sorted(step):
        print(f"step at {n} slices: median {step[n] / 1e3:.1f} ms")
    for name, values in (("dying", [r[0] for r in rows]), ("detection", [r[1] for r in rows]),
                         ("beyond", [r[2] for r in rows]), ("join", joins), ("hello", hellos)):
        if values:
            print(f"{name:10} n {len(values):3}  p50 {percentile(values, .5) / 1e3:8.1f} ms  p95 {percentile(values, .95) / 1e3:8.1f} ms"
                  f"  max {max(values) / 1e3:8.1f} ms")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
