#!/usr/bin/env python3
"""How surely a rank that always computes wrongly is found and named: jobs in which one rank flips the
same bit of the same element whenever it computes it (faults.sticky), at random places.

  bench/sticky.py build/bin/maniple --trials 40 [--seed 1] [overrides...]

4 slices of 2 ranks. Per trial: whether the slice was quarantined within 2 x slices canary intervals,
whether slice and position were named rightly, and whether the losses at the end are those of a
healthy run. A trial without any effect, in which the losses stay right though nothing was found, is
counted by itself."""
import argparse
import os
import random
import re
import shutil
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here + "/../tests/faults")
from invariants import EXACT
from job import Job

PLACES = {"hidden": 4096, "gate": 96, "expert": 2048, "gradient": 20000, "sum": 20000}  # elements to choose from
BITS = range(2, 31)
EVERY, START, STEPS = 4, 24, 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_intermixed_args()
    draw = random.Random(a.seed)
    program = os.path.realpath(a.program)
    folder = tempfile.mkdtemp(prefix="maniple-sticky-")
    shutil.copy(here + "/../tests/data/tinyshakespeare-200k.txt", folder + "/text.txt")
    shutil.copy(here + "/../tests/faults/tiny.yaml", folder)
    os.chdir(folder)
    common = [f"train.steps={STEPS}", "parallel.ep=2", "checkpoint.every=10", f"sdc.canary_every={EVERY}",
              "elastic.lease=2", *a.overrides]

    def job(name, *overrides):
        one = Job(program, folder + "/tiny.yaml", f"{folder}/{name}", [*common, *overrides]).start()
        code = one.wait(300)
        return one, code

    healthy = job("healthy")[0].rows()
    results = []
    for n in range(a.trials):
        slice, position = draw.randrange(4), draw.randrange(2)
        place, bit = draw.choice(list(PLACES)), draw.choice(BITS)
        element = draw.randrange(PLACES[place])
        done, code = job(f"trial-{n}", f"faults.sticky={slice}:{position}:{START}:{place}:{element}:{bit}")
        said = " ".join(e["text"] for e in done.events("sdc_defect"))
        named = re.search(r"step (\d+): .*?slice (\d+) computes wrongly", said)
        where = re.search(r"position (\d+) differs first", said)
        rows = done.rows()
        equal = len(rows) == len(healthy) and all(rows[s].get(k) == healthy[s].get(k) for s in rows for k in EXACT)
        result = {"found": bool(named) and int(named[1]) <= START + 2 * 4 * EVERY, "late": bool(named),
                  "slice": bool(named) and int(named[2]) == slice, "position": bool(where) and int(where[1]) == position,
                  "equal": equal and code == 0}
        results.append((place, bit, result))
        print(f"trial {n + 1}: slice {slice} position {position} {place} element {element} bit {bit}: "
              f"{said or 'nothing found'}; losses {'equal' if equal else 'differ'}; exit {code}", file=sys.stderr, flush=True)
        shutil.rmtree(done.run)
    effective = [r for _, _, r in results if r["late"] or not r["equal"]]
    found = [r for r in effective if r["found"]]

    def share(some, of):
        return f"{len(some)} of {len(of)}"
    print(f"without effect: {share([0] * (len(results) - len(effective)), results)}")
    print(f"found within {2 * 4} canary intervals: {share(found, effective)}; ever: {share([r for r in effective if r['late']], effective)}")
    print(f"slice named rightly: {share([r for r in found if r['slice']], found)}; position too: {share([r for r in found if r['slice'] and r['position']], found)}")
    print(f"losses of all steps bit-identical in the end: {share([r for r in effective if r['equal']], effective)}")
    for place in PLACES:
        mine = [r for p, _, r in results if p == place and (r["late"] or not r["equal"])]
        print(f"  {place}: found {share([r for r in mine if r['found']], mine)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
