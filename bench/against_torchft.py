#!/usr/bin/env python3
"""Lost processes: Maniple against torchft and against checkpoint-restart, on this machine.

    bench/against_torchft.py build/bin/maniple [--minutes 4] [--rounds 4] [--mean 20] [--out FILE]
    bench/against_torchft.py build/bin/maniple --unit 0.03    # slices that mostly sleep, against torchft, short

All have four slices (replica groups) of one process and one thread, and about the same number of
parameters. Each runs without a fault and with SIGKILLs, at the same times and to the same slices for
all; --minutes is the time with kills of each. They take turns, so that none takes processor time
from another, in rounds, so that what else the machine does hits all.

  Maniple             maniple launch
  torchft, short      lighthouse, manager.allreduce over gloo, its shortest time-outs that were stable;
                      a killed replica group is started again at once. A sleep fills up its step to
                      Maniple's length: its survivors have idle processors, and Maniple's have them
                      with --unit only
  torchft, default    the same with its default time-outs
  restart             mpirun maniple train, a checkpoint at Young's interval, sqrt(2 x cost of a
                      checkpoint x mean time between failures); the same command again after a kill

Printed:
  pause               longest time between two commits of the job from a kill to the next one, less a
                      step of that time; a step that is computed again counts when the job has got beyond it. The
                      same without kills: at the same times of the run without faults
  all pauses          time between commits beyond one step, where it is longer than two, from a kill
                      to the next one
  with fewer slices   time of the steps that fewer than all slices committed
  discarded           steps that somebody computed and nobody used, or that were computed again
  tokens committed    of what the run without faults committed in the same time. Read it with care:
                      slices that share processors are not slower when there are fewer of them
  machines of their own   computed: all pauses, and each second with fewer slices costs a quarter
  trajectory          first step whose state has other bits than in the run without faults

torchft comes from PyPI into a folder of its own beside Maniple's cache."""
import argparse
import bisect
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/faults"))
from invariants import EXACT
from job import Job, lines

CACHE = Path(os.environ.get("MANIPLE_CACHE") or
             Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maniple")
PEER = CACHE / "bench-torchft"
TORCH = os.environ.get("MANIPLE_TORCH_VERSION", "2.14.0")
TORCHFT = "0.2.0"
SLICES = 4
WARM_UP = 20  # steps before the clock starts
PARAMETERS, ROWS = 153296, 24  # of tests/faults/tiny.yaml
CONFIG = ["train.steps=1000000", "metrics.fingerprint_every=1"]
# Time-outs of torchft from short to long: milliseconds of the lighthouse, seconds of manager and gloo.
TIMEOUTS = [dict(quorum_tick_ms=20, heartbeat_timeout_ms=t, join_timeout_ms=t // 2, timeout=t / 1000)
            for t in (200, 300, 500, 1000, 2000)]


def say(text):
    print(text, file=sys.stderr, flush=True)


def now():
    """Seconds of the machine's monotonic clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def set_up():
    if not (PEER / ".complete").exists():
        say(f"installing torch {TORCH} and torchft {TORCHFT} into {PEER}")
        shutil.rmtree(PEER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(PEER),
                        "--root-user-action=ignore", "--disable-pip-version-check",
                        f"torch=={TORCH}", f"torchft=={TORCHFT}", "numpy"], check=True)
        (PEER / ".complete").touch()


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
        return True
    except (ProcessLookupError, TypeError):
        return False


# --- The contestants: start, tend (supervise), kill, stop; result: commits of the job as {step: (time,
# slices)}, states as {step: bits}, number of discarded steps -------------------------------------------
class Maniple:
    def __init__(self, program, folder, overrides):
        self.job = Job(program, f"{folder}/tiny.yaml", tempfile.mkdtemp(dir=folder) + "/run",
                       [*CONFIG, f"parallel.slices={SLICES}", "elastic.max_restarts=1000000", *overrides])

    def start(self):
        self.job.start()

    def tend(self):
        if self.job.process.poll() is not None:
            raise SystemExit(f"maniple launch has ended: see {self.job.run}.out")

    def last_step(self):
        return max(self.job.commits(s) for s in range(SLICES))

    def kill(self, slice):
        return kill(self.job.pid("train", slice))

    def stop(self):
        if self.job.process:
            self.job.process.terminate()
            self.job.wait(30)

    def result(self):
        commits, lost = {}, {}  # lost: epoch -> steps
        for slice in range(SLICES):
            halt = None
            for e in self.job.journal(slice):
                if e["event"] == "commit":
                    at, slices = commits.get(e["step"], (e["us"] / 1e6, 0))
                    commits[e["step"]] = (min(at, e["us"] / 1e6), slices + 1)
                elif e["event"] == "halt":
                    halt = e
                elif e["event"] == "restored" and halt and halt["life"] == e["life"]:
                    lost[halt["epoch"]] = max(lost.get(halt["epoch"], 0), halt["step"] - e["step"])
                    halt = None
        states = {s: tuple(row.get(k) for k in EXACT) for s, row in self.job.rows().items()}
        return commits, states, sum(lost.values())


class Torchft:
    def __init__(self, folder, tokens, pause, timeouts):
        self.folder, self.tokens, self.pause = tempfile.mkdtemp(dir=folder), tokens, pause
        self.timeout = timeouts.get("timeout")
        self.flags = [w for k, v in timeouts.items() if k != "timeout" for w in ("--" + k, str(v))]
        self.workers, self.lighthouse, self.killed, self.deaths = {}, None, set(), 0

    def run(self, *command):
        env = {**os.environ, "PYTHONPATH": str(PEER), "RUST_LOG": "error", "GLOO_SOCKET_IFNAME": "lo"}
        with open(self.folder + "/out", "ab") as out:
            return subprocess.Popen([str(c) for c in command], env=env, stdout=out, stderr=out)

    def worker(self, slice, *more):
        limit = ["--timeout", self.timeout] if self.timeout else []
        self.workers[slice] = self.run(
            sys.executable, ROOT / "bench/peer_torchft.py", "--replica", slice, "--groups", SLICES,
            "--lighthouse", self.address, "--text", self.folder + "/../text.txt",
            "--log", f"{self.folder}/{slice}.jsonl", "--parameters", PARAMETERS,
            "--tokens", self.tokens // SLICES, "--pause", self.pause, *limit, *more)

    def start(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            bind = "127.0.0.1:%d" % free.getsockname()[1]
        self.address = "http://" + bind
        self.lighthouse = self.run(PEER / "bin/torchft_lighthouse", "--bind", bind,
                                   "--min_replicas", 1, *self.flags)
        for slice in range(SLICES):
            self.worker(slice, "--first")

    def tend(self):
        for slice, process in self.workers.items():
            if process.poll() is not None:
                self.deaths += slice not in self.killed  # of its own accord: a time-out
                self.killed.discard(slice)
                self.worker(slice)

    def log(self, slice):
        return lines(f"{self.folder}/{slice}.jsonl")

    def last_step(self):
        return max((e["step"] for e in self.log(0) if e["event"] == "commit"), default=0)

    def kill(self, slice):
        self.killed.add(slice)
        return kill(self.workers[slice].pid)

    def stop(self):
        for process in filter(None, [*self.workers.values(), self.lighthouse]):
            process.kill()
            process.wait()

    def result(self):
        commits, states, discarded, apart = {}, {}, {}, set()
        for slice in range(SLICES):
            own = {}
            for e in self.log(slice):
                step = e.get("step")
                if e["event"] == "commit":
                    at, _ = commits.get(step, (e["us"] / 1e6, 0))
                    commits[step] = (min(at, e["us"] / 1e6), e["participants"])
                    if states.setdefault(step, e["state"]) != e["state"]:
                        apart.add(step)
                elif e["event"] == "discard":
                    own[step] = own.get(step, 0) + 1
            for step, count in own.items():
                discarded[step] = max(count, discarded.get(step, 0))
        if apart or self.deaths:
            say(f"torchft: states differ between groups at {len(apart)} steps; "
                f"{self.deaths} workers ended of themselves")
        return commits, states, sum(discarded.values())


class Restart:
    def __init__(self, program, folder, every):
        self.run = tempfile.mkdtemp(dir=folder) + "/run"
        self.command = ["mpirun", "-n", str(SLICES), program, "train", f"{folder}/tiny.yaml",
                        "run.dir=" + self.run, *CONFIG, f"parallel.slices={SLICES}", f"checkpoint.every={every}"]
        self.process, self.commits, self.position, self.inode, self.high = None, {}, 0, None, []

    def start(self):
        with open(self.run + ".out", "ab") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out)

    def tend(self):
        """Gives each new row of metrics.jsonl the time at which it was seen."""
        try:
            file = os.stat(self.run + "/metrics.jsonl")
            if file.st_ino != self.inode or file.st_size < self.position:
                self.inode, self.position = file.st_ino, 0
            if file.st_size > self.position:
                with open(self.run + "/metrics.jsonl", "rb") as rows:
                    rows.seek(self.position)
                    new = rows.read()
                new = new[:new.rfind(b"\n") + 1]
                self.position += len(new)
                for row in new.splitlines():
                    self.commits.setdefault(json.loads(row)["step"], (now(), SLICES))
        except FileNotFoundError:
            pass
        if self.process.poll() is not None:
            self.high.append(self.last_step())
            self.start()

    def last_step(self):
        return max(self.commits, default=0)

    def kill(self, slice):
        pid = self.process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                return kill(sorted(map(int, file.read().split()))[slice])
        except (FileNotFoundError, IndexError):
            return False

    def stop(self):
        if self.process:
            self.process.kill()  # its ranks die with it
            self.process.wait()

    def result(self):
        states = {r["step"]: tuple(r.get(k) for k in EXACT) for r in lines(self.run + "/metrics.jsonl") if "loss" in r}
        starts = [e["first_step"] for e in lines(self.run + "/events.jsonl") if e["event"] == "start"]
        return self.commits, states, sum(high + 1 - first for high, first in zip(self.high, starts[1:]))


# --- Runs ----------------------------------------------------------------------------------------------
class Run:
    """What a contestant has done in some seconds with kills at [(second, slice)]."""

    def __init__(self, contestant, seconds, kills=()):
        self.seconds, self.kills = seconds, []
        try:
            contestant.start()
            deadline = now() + 120
            while contestant.last_step() < WARM_UP:
                if now() > deadline:
                    raise SystemExit("no start within two minutes")
                contestant.tend()
                time.sleep(0.02)
            self.begin = now()
            for at, slice in [*kills, (seconds, None)]:
                while now() < self.begin + at:
                    contestant.tend()
                    time.sleep(0.005)
                while slice is not None and now() < self.begin + at + 3:
                    if contestant.kill(slice):
                        self.kills.append(now())
                        break
                    contestant.tend()
                    time.sleep(0.005)
        finally:
            contestant.stop()
        commits, self.states, self.discarded = contestant.result()
        commits = sorted((at, step, slices) for step, (at, slices) in commits.items() if at <= self.begin + seconds)
        self.before = [c for c in commits if c[0] < self.begin]
        self.commits = [c for c in commits if c[0] >= self.begin]
        self.times = [c[0] for c in (self.before[-1:] + self.commits)]
        self.intervals = [b - a for a, b in zip(self.times, self.times[1:])]
        self.step = statistics.median(self.intervals)

    def work(self, divided):
        """Steps committed; one with fewer slices counts as a part where it has their tokens only."""
        return sum(slices / SLICES if divided else 1 for _, _, slices in self.commits)

    def pauses(self, kills):
        """Per kill, the longest interval between commits, less a step (median of the 20 before), and the
        sum of those beyond two steps. An interval counts for the kills in it, in the sum for the first;
        else for the last before."""
        longest, all = [0.0] * len(kills), [0.0] * len(kills)
        for i, (a, b) in enumerate(zip(self.times, [*self.times[1:], self.begin + self.seconds])):
            begin, end = bisect.bisect_right(kills, a), bisect.bisect_right(kills, b)
            inside = range(begin, end) or range(max(begin - 1, 0), begin)
            step = statistics.median(self.intervals[max(i - 20, 0):i] or [self.step])
            for kill in inside:
                longest[kill] = max(longest[kill], b - a - step)
            if inside and b - a > 2 * step:
                all[inside[0]] += b - a - step
        return longest, all

    def fewer(self):
        """Seconds spent on steps with fewer slices."""
        commits = self.commits[-len(self.intervals):]
        return sum(t for t, (_, _, slices) in zip(self.intervals, commits) if slices < SLICES)

    def differs(self, other):
        """The first step whose state is another than in the other run."""
        return next((s for s in sorted(self.states) if s in other.states and self.states[s] != other.states[s]), None)


def without_kills(run):
    return f"{run.fewer():.1f} of {run.seconds:.0f} s with fewer slices"


def stable(contestant):
    """Nobody is dropped in half a minute in which nobody is killed."""
    run = Run(contestant, 30)
    say(f"torchft, {contestant.timeout} s: {without_kills(run)}")
    return run.fewer() == 0


def kill_times(seconds, mean, seed):
    """Exponential distances of at least 5 s; the last kill leaves 5 s, and there is at least one."""
    draw, at, kills = random.Random(seed), 0.0, []
    while True:
        at += 5 + draw.expovariate(1 / (mean - 5))
        if at > seconds - 5:
            return kills or [(seconds / 2, draw.randrange(SLICES))]
        kills.append((at, draw.randrange(SLICES)))


def checkpoint_cost(run, every):
    """Seconds by which the steps after a checkpoint are longer than the others."""
    steps = [step for _, step, _ in run.commits]
    durations = dict(zip(steps[-len(run.intervals):], run.intervals))
    extra = [sum(durations.get(s + i, run.step) - run.step for i in range(1, every // 2 + 1))
             for s in steps if s % every == 0]
    return max(statistics.median(extra), 0.001)


def figures(runs, frees, divided=False):
    """What the table says of a contestant, and the numbers behind it: runs with kills and without them,
    in pairs."""
    n, seconds = sum(len(r.kills) for r in runs), sum(r.seconds for r in runs)
    longest, all, quiet, differs = [], [], [], []
    for run, free in zip(runs, frees):
        for sums, more in zip((longest, all), run.pauses(run.kills)):
            sums += more
        quiet += free.pauses([free.begin + t - run.begin for t in run.kills])[0]
        if first := run.differs(free):
            sound = max(step for at, step, _ in run.commits if at < run.kills[0])
            differs.append(f"another from step {first} on (first kill behind step {sound})")
    share = sum(r.work(divided) for r in runs) / sum(f.work(divided) for f in frees)
    fewer = sum(r.fewer() for r in runs) / n
    apart = statistics.mean(all) + fewer / SLICES
    compared = sum(len(r.states.keys() & f.states.keys()) for r, f in zip(runs, frees))
    ms = lambda t: f"{1e3 * t:.0f} ms"
    table = {
        "step without kills, with kills": ", ".join(ms(statistics.median(r.step for r in x)) for x in (frees, runs)),
        "kills": n,
        "pause per kill, median": ms(statistics.median(longest)),
        "pause per kill, longest": ms(max(longest)),
        "the same without kills, median, longest": f"{ms(statistics.median(quiet))}, {ms(max(quiet))}",
        "all pauses per kill, mean": ms(statistics.mean(all)),
        "with fewer slices per kill": f"{fewer:.1f} s",
        "steps discarded or redone per kill": f"{sum(r.discarded for r in runs) / n:.1f}",
        "tokens committed": f"{100 * share:.1f} %",
        "time lost per kill by tokens": f"{(1 - share) * seconds / n:.2f} s",
        "tokens committed, on machines of their own": f"{100 * (1 - apart * n / seconds):.1f} %",
        "time lost per kill, on machines of their own": f"{apart:.2f} s",
        "trajectory": differs[0] if differs else f"the same, {compared} steps"}
    return {"table": table, "longest": longest, "all": all, "quiet": quiet,
            "rounds": [{"begin": r.begin, "kills": r.kills, "times": r.times} for r in runs]}


def show(results):
    print("| | " + " | ".join(results) + " |\n" + "| --- " * (len(results) + 1) + "|")
    for name in next(iter(results.values()))["table"]:
        print(f"| {name} | " + " | ".join(str(r["table"][name]) for r in results.values()) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="in which all take turns")
    parser.add_argument("--mean", type=float, default=20, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lease", type=float, default=0.5, help="elastic.lease")
    parser.add_argument("--seq_len", type=int, default=64, help="tokens of a row, 24 rows a step: shorter steps")
    parser.add_argument("--unit", type=float, default=0, help="seconds a unit of Maniple takes at least, a slice has "
                        "3 in a step; only Maniple and torchft, short")
    parser.add_argument("--out", help="also write the results there, as JSON")
    a = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    set_up()
    settings = subprocess.run(["bash", "-c", f". {ROOT}/scripts/lib.sh; mpi_environment; env -0"],
                              check=True, stdout=subprocess.PIPE, text=True).stdout
    os.environ.update(line.split("=", 1) for line in settings.split("\0") if line.startswith("OMPI_"))
    # The siblings of a killed rank end at once, as under launch.
    os.environ["OMPI_MCA_odls_base_sigkill_timeout"] = "0"
    tokens, elastic = ROWS * a.seq_len, [f"elastic.lease={a.lease}", f"faults.unit_seconds={a.unit}"]
    program, seconds = os.path.realpath(a.program), 60 * a.minutes / a.rounds
    schedule = [kill_times(seconds, a.mean, a.seed + i) for i in range(a.rounds)]
    folder = tempfile.mkdtemp(prefix="maniple-against-")
    try:
        shutil.copy(ROOT / "tests/data/tinyshakespeare-200k.txt", folder + "/text.txt")
        text = (ROOT / "tests/faults/tiny.yaml").read_text()
        text = text.replace("path: text.txt", f"path: {folder}/text.txt")
        Path(folder + "/tiny.yaml").write_text(text.replace("seq_len: 64", f"seq_len: {a.seq_len}"))
        runs = {}  # of each name, one per round

        def play(name, contestant, kills=()):
            run = Run(contestant, seconds, kills)
            runs.setdefault(name, []).append(run)
            say(f"{name}: {len(run.commits)} steps, median {1e3 * run.step:.0f} ms, "
                f"pauses " + ", ".join(f"{1e3 * t:.0f}" for t in run.pauses(run.kills)[0]))
            return run

        for number, kills in enumerate(schedule):
            say(f"round {number + 1}: {len(kills)} kills at " + ", ".join(f"{at:.0f}" for at, _ in kills))
            free = play("Maniple without kills", Maniple(program, folder, elastic))
            play("Maniple", Maniple(program, folder, elastic), kills)
            if number == 0:
                base = Run(Torchft(folder, tokens, 0, {}), 10).step
                pause = max(0, seconds / len(free.commits) - base)
                say(f"torchft: a step takes {1e3 * base:.1f} ms, and sleeps {1e3 * pause:.1f} ms")
                shortest = next((t for t in TIMEOUTS if stable(Torchft(folder, tokens, pause, t))), TIMEOUTS[-1])
            free = play("torchft without kills", Torchft(folder, tokens, pause, shortest))
            say(without_kills(free))
            play("torchft, short", Torchft(folder, tokens, pause, shortest), kills)
            if a.unit:
                continue
            play("torchft, default", Torchft(folder, tokens, pause, {}), kills)
            if number == 0:
                cost = checkpoint_cost(Run(Restart(program, folder, 10), 20), 10)
            free = play("restart without kills", Restart(program, folder, 0))
            if number == 0:
                every = max(1, round((2 * cost * a.mean) ** 0.5 / free.step))
                say(f"restart: a checkpoint costs {1e3 * cost:.0f} ms: one every {every} steps")
            play("restart", Restart(program, folder, every), kills)
        results = {name: figures(runs[name], runs[name.split(",")[0] + " without kills"], "torchft" in name)
                   for name in runs if "without" not in name}
        show(results)
        if a.out:
            Path(a.out).write_text(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
