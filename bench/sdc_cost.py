#!/usr/bin/env python3
"""What the checks against silent data corruption cost: the same elastic job with and without them, in
turn; medians of the steps' times and their ratio, and of the phases in which there are checks, at the
leaders: where steps of one program scatter by more than the checks cost, these show it.

  bench/sdc_cost.py build/bin/maniple --rounds 5 parallel.slices=2

Runs examples/elastic.yaml on a text of this repository."""
import argparse
import glob
import json
import os
import shutil
import statistics
import subprocess
import tempfile

root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CASES = {
    "all off": ["sdc.state=false", "sdc.canary_every=0", "sdc.outliers=false", "sdc.dispatch=false"],
    "dispatch": ["sdc.state=false", "sdc.canary_every=0", "sdc.outliers=false"],
    "state": ["sdc.canary_every=0", "sdc.outliers=false", "sdc.dispatch=false"],
    "default": [],
}


PHASES = ("fold", "exchange", "vote", "update", "publish")


def phases_of_a_step(run, first):
    """Milliseconds by phase, medians over steps and slices."""
    spent = [e for path in glob.glob(run + "/elastic/slice-*.jsonl") for e in map(json.loads, open(path))
             if e["event"] == "spent" and e["step"] >= first]
    return {phase: 1e3 * statistics.median(e["seconds"][phase] for e in spent) for phase in PHASES}


def measure(program, folder, steps, overrides):
    run = tempfile.mkdtemp(dir=folder)
    command = [program, "launch", root + "/examples/elastic.yaml", "run.dir=" + run + "/run",
               f"data.sources=[{{path: {root}/tests/data/tinyshakespeare-200k.txt, kind: text}}]",
               f"train.steps={steps}", "checkpoint.every=0", "eval.every=0", "metrics.every=1", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in open(run + "/run/metrics.jsonl")]
    rows = [r for r in rows if "loss" in r]
    times = [r["tokens"] / r["tokens_per_s"] for r in rows[len(rows) // 4:]]
    return sum(times) / len(times), phases_of_a_step(run + "/run", len(rows) // 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_intermixed_args()
    folder = tempfile.mkdtemp(prefix="maniple-sdc-cost-")
    times, phases = {name: [] for name in CASES}, {name: [] for name in CASES}
    for n in range(a.rounds):
        for name, overrides in CASES.items():
            seconds, by_phase = measure(os.path.realpath(a.program), folder, a.steps, [*a.overrides, *overrides])
            times[name].append(seconds)
            phases[name].append(by_phase)
        print(f"round {n + 1}: " + ", ".join(f"{name} {1e3 * t[-1]:.1f} ms" for name, t in times.items()), flush=True)
    off = times["all off"]
    for name, t in times.items():
        ratios = sorted(x / y for x, y in zip(t, off))
        print(f"{name:8} {1e3 * statistics.median(t):7.1f} ms a step, {statistics.median(ratios):.3f} of all off "
              f"({ratios[0]:.3f} to {ratios[-1]:.3f}); ms: "
              + ", ".join(f"{p} {statistics.median(one[p] for one in phases[name]):.1f}" for p in PHASES))
    shutil.rmtree(folder)


main()
