#!/usr/bin/env python3
"""Throughput of an elastic job with one slice out, and how long the others wait when it comes back.

  bench/lost_slice.py build/bin/maniple [--slices 4] [--unit 0.06] [--rounds 5] [overrides...]

On a shared machine a lost slice frees processors for the others, so units are given a fixed time
(faults.unit_seconds) that computing does not fill. Each round drains a slice and readmits it. With R
units of equal time, S slices do ceil(R / S) units one after the other and S - 1 slices
ceil(R / (S - 1)): what is expected of a slice out is the ratio of the two.

Printed: steps per second with all slices and with one out, their ratio against the expected one, and
per round the stall of the survivors when the slice joins: the gap between two commits beyond a step,
with the transfer of state in it."""
import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here + "/../tests/faults")
from job import Job


def ctl(job, *words):
    subprocess.run([job.program, "ctl", job.run, *words], check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--unit", type=float, default=0.06, help="seconds a unit takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="steps of each part of a round")
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_intermixed_args()
    folder = tempfile.mkdtemp(prefix="maniple-lost-slice-")
    shutil.copy(here + "/../tests/data/tinyshakespeare-200k.txt", folder + "/text.txt")
    shutil.copy(here + "/../tests/faults/tiny.yaml", folder)
    program = os.path.realpath(a.program)
    os.chdir(folder)
    units = a.slices * (a.slices - 1)
    job = Job(program, folder + "/tiny.yaml", folder + "/run",
              [f"parallel.slices={a.slices}", f"batch.units={units}", f"batch.rows={units}", "train.steps=1000000",
               f"faults.unit_seconds={a.unit}", "metrics.fingerprint_every=0", *a.overrides]).start()
    last = a.slices - 1  # the slice that leaves
    try:
        job.until_epochs(1)
        job.until(lambda: job.last_step() >= a.steps, 300, "the first steps")
        for n in range(a.rounds):
            for words in (["drain", str(last)], ["readmit", str(last)]):
                epochs = len(job.epochs())
                ctl(job, *words)
                job.until(lambda: len(job.epochs()) > epochs, 120, " ".join(words))
                step = job.last_step()
                job.until(lambda: job.last_step() >= step + a.steps, 300, "steps")
            print(f"round {n + 1} of {a.rounds}: step {job.last_step()}", file=sys.stderr)
    finally:
        job.process.terminate()
        job.wait(60)
    journal = job.journal(0)  # of a survivor
    members = {s: {e["epoch"] for e in job.journal(s) if e["event"] == "commit"} for s in range(a.slices)}
    sizes = {}
    for epochs in members.values():
        for epoch in epochs:
            sizes[epoch] = sizes.get(epoch, 0) + 1
    gaps, stalls = {a.slices: [], a.slices - 1: []}, []
    commits = [e for e in journal if e["event"] == "commit"]
    for before, after in zip(commits, commits[1:]):
        gap = (after["us"] - before["us"]) / 1e6
        if before["epoch"] == after["epoch"]:
            gaps[sizes[after["epoch"]]].append(gap)
        elif sizes[after["epoch"]] == a.slices:
            stalls.append(gap)
    full, less = (1 / statistics.median(gaps[n]) for n in (a.slices, a.slices - 1))
    expected = units / a.slices / math.ceil(units / (a.slices - 1))
    print(f"{a.slices} slices: {full:.3f} steps/s; {a.slices - 1} slices: {less:.3f} steps/s (medians of "
          f"{len(gaps[a.slices])} and {len(gaps[a.slices - 1])})")
    print(f"ratio {less / full:.4f}, expected {expected:.4f}: {100 * (less / full / expected - 1):+.2f} %")
    beyond = [stall - 1 / full for stall in stalls]
    print("stall of the survivors at a join, beyond a step: "
          + ", ".join(f"{1e3 * b:.0f} ms" for b in beyond))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
