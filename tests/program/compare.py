"""Compares the metrics of two run folders step by step.

compare.py REFERENCE OTHER STEPS exact            losses, norms and fingerprints have equal bits
compare.py REFERENCE OTHER STEPS LOSS [NORM [N]]  losses within LOSS; norms within NORM, relative;
                                                  over the first N steps (all), the rest is reported

Exits with 1 and one line of findings where they differ.
"""
import json
import math
import sys


def steps_of(run):
    with open(f"{run}/metrics.jsonl") as lines:
        return [r for r in map(json.loads, lines) if "loss" in r]


def main():
    reference, other, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    a, b = steps_of(reference), steps_of(other)
    for name, steps in ((reference, a), (other, b)):
        if [r["step"] for r in steps] != list(range(1, count + 1)):
            sys.exit(f"  {name}: steps are {[r['step'] for r in steps]}, expected 1 to {count}")
        if not all(math.isfinite(r["loss"]) and math.isfinite(r["grad_norm"]) for r in steps):
            sys.exit(f"  {name}: a loss or norm is not finite")
    if a[-1]["loss"] > a[0]["loss"] - 0.1:
        sys.exit(f"  {reference}: nothing was learned")
    for x, y in zip(a, b):
        where = f"  {other}, step {x['step']}:"
        if sys.argv[4] == "exact":
            for key in ("loss", "grad_norm", "grad_norm_experts", "aux_loss", "z_loss",
                        "state_fingerprint"):
                if x[key] != y[key]:
                    sys.exit(f"{where} {key} is {y[key]}, not {x[key]}")
            continue
        if len(sys.argv) > 6 and x["step"] > int(sys.argv[6]):
            continue
        loss = abs(x["loss"] - y["loss"])
        if loss > float(sys.argv[4]):
            sys.exit(f"{where} loss {y['loss']} is {loss:.2e} from {x['loss']}")
        norm = abs(x["grad_norm"] / y["grad_norm"] - 1)
        if len(sys.argv) > 5 and norm > float(sys.argv[5]):
            sys.exit(f"{where} gradient norm {y['grad_norm']} is {norm:.2e} (relative) from {x['grad_norm']}")
    if sys.argv[4] == "exact":
        print(f"  {other}: {count} steps, equal bits")
    else:
        worst = max(abs(x["loss"] - y["loss"]) for x, y in zip(a, b))
        norm = max(abs(x["grad_norm"] / y["grad_norm"] - 1) for x, y in zip(a, b))
        print(f"  {other}: losses within {worst:.1e}, norms within {norm:.1e}")


main()
