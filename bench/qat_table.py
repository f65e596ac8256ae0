#!/usr/bin/env python3
"""What quantisation-aware training recovers of the loss that plain rounding costs, per grid.

For each seed: one model is trained (examples/qat.yaml); it then goes on for a few hundred steps
without a grid and, from the same start with the same data, on each grid. "Rounding" puts the model
that went on without a grid on the grid; "recovered" is the share of that gap which training on the
grid closes. All are validation losses in nats, with the deviation between seeds.

The model has to be trained well before: one that was trained for a few hundred steps hardly suffers
from rounding.

bench/qat_table.py [--seeds 3] [--steps 1000] [--lr 1e-3] [--start-steps 3000] [--start-lr 5e-3]
                   [--grids int4_channel ...] [--rows 2000] [--out FOLDER] [overrides...]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(os.environ.get("MANIPLE_PROGRAM") or ROOT / "build/bin/maniple")
GRIDS = ["int4_channel", "q4_0", "int4_g32", "int4_g128", "sfp8"]


def run(*arguments):
    done = subprocess.run([str(PROGRAM), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def train(folder, *overrides):
    if not (folder / "checkpoints/latest").exists():
        run("train", "examples/qat.yaml", f"run.dir={folder}", "eval.every=0", *overrides)
    return folder


def loss(folder, rows):
    return json.loads(run("eval", folder, "--rows", rows).splitlines()[-1])["eval_loss"]


def mean(values):
    spread = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--start-steps", type=int, default=3000)
    parser.add_argument("--start-lr", type=float, default=5e-3)
    parser.add_argument("--grids", nargs="+", default=GRIDS, choices=GRIDS)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    o = parser.parse_intermixed_args()
    out = (o.out or Path(tempfile.mkdtemp(prefix="qat-"))).resolve()
    plain, rounded, trained = [], {g: [] for g in o.grids}, {g: [] for g in o.grids}
    for seed in range(1, o.seeds + 1):
        start = train(out / f"start-{seed}", f"run.seed={seed}",
                      f"train.steps={o.start_steps}", f"optim.lr={o.start_lr}", *o.overrides)
        longer = [f"run.seed={seed}", f"model.init_from={start}", f"train.steps={o.steps}", f"optim.lr={o.lr}",
                  *o.overrides]
        control = train(out / f"plain-{seed}", *longer)
        plain.append(loss(control, o.rows))
        for grid in o.grids:
            # One step of learning rate 0 on the grid: the same weights, rounded.
            only = train(out / f"round-{grid}-{seed}", *longer, f"model.init_from={control}", f"quant.format={grid}",
                         "train.steps=1", "optim.lr=0", "optim.weight_decay=0",
                         "optim.warmup_steps=0")
            rounded[grid].append(loss(only, o.rows))
            trained[grid].append(loss(train(out / f"{grid}-{seed}", *longer, f"quant.format={grid}"), o.rows))
            print(f"seed {seed} {grid}: plain {plain[-1]:.4f} rounding {rounded[grid][-1]:.4f} "
                  f"QAT {trained[grid][-1]:.4f}", file=sys.stderr, flush=True)
    print(f"Without a grid: {mean(plain)} ({o.seeds} seeds, {o.steps} steps)\n")
    print("| grid | rounding | QAT | gap of rounding | recovered |\n| --- | --- | --- | --- | --- |")
    for grid in o.grids:
        gaps = [r - p for r, p in zip(rounded[grid], plain)]
        rest = [t - p for t, p in zip(trained[grid], plain)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0
        share = 1 - statistics.mean(rest) / statistics.mean(gaps)
        clear = statistics.mean(gaps) > 5 * error
        print(f"| `{grid}` | {mean(rounded[grid])} | {mean(trained[grid])} | {mean(gaps)} | "
              f"{f'{100 * share:.0f} %' if clear else 'gap within noise'} |")


if __name__ == "__main__":
    main()
