#!/usr/bin/env python3
"""How soon a rank that computes wrongly now and then is found: one bit of the input of a layer is
flipped with probability p each time (faults.sticky), from step START on.

  bench/intermittent.py build/bin/maniple [overrides...] --trials 3 --p 1e-1 1e-2 1e-3

4 slices of 2 ranks; a rank reaches the place 6 times a step, and 2 times more in a canary. Per p: in
how many trials anything was found, the median of the steps from START to the first finding and to the
quarantine, how many wrong results were found, whether another slice was blamed, and how many losses of
the run are not those of a healthy one."""
import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here + "/../tests/faults")
from invariants import EXACT
from job import Job

START = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--p", type=float, nargs="+", default=[1e-1, 1e-2, 1e-3])
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_intermixed_args()
    program = os.path.realpath(a.program)
    folder = tempfile.mkdtemp(prefix="maniple-intermittent-")
    shutil.copy(here + "/../tests/data/tinyshakespeare-200k.txt", folder + "/text.txt")
    shutil.copy(here + "/../tests/faults/tiny.yaml", folder)
    os.chdir(folder)
    common = [f"train.steps={a.steps}", "parallel.ep=2", "checkpoint.every=20", *a.overrides]

    def job(name, *overrides):
        one = Job(program, folder + "/tiny.yaml", f"{folder}/{name}", [*common, *overrides]).start()
        one.wait(600)
        return one

    def median(steps):
        return f"{statistics.median(steps):.0f} ({len(steps)} of {a.trials})" if steps else f"none of {a.trials}"

    healthy = job("healthy").rows()
    for p in a.p:
        first, barred, found, others, wrong = [], [], 0, 0, []
        for n in range(a.trials):
            # Another slice and element are other draws.
            victim = n % 4
            done = job(f"p-{p}-{n}", f"faults.sticky={victim}:1:{START}:hidden:{5 + n}:3:{p}")
            steps = []
            for e in done.events():
                if e["event"] in ("sdc_transient", "sdc_defect", "sdc_undecided", "sdc_software"):
                    steps.append(int(re.match(r"step (\d+)", e["text"])[1]))
                    named = re.search(r": slices? ([\d and]+) (gave|computes|contradict)", e["text"])
                    others += not named or named[1] != str(victim)
                if e["event"] == "slice_banned" and f"slice {victim} is quarantined" in e["text"]:
                    barred.append(steps[-1] - START)
            found += len(steps)
            first += [steps[0] - START] if steps else []
            rows = done.rows()
            wrong.append(sum(any(rows[s].get(k) != healthy[s].get(k) for k in EXACT) for s in rows))
            shutil.rmtree(done.run)
        print(f"p {p:g}: first finding after {median(first)} steps, quarantine after {median(barred)}; "
              f"{found} findings, {others} that blame another; steps that are not the healthy ones: {wrong} of {a.steps}", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
