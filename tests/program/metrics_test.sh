#!/usr/bin/env bash
# What a run leaves for those who watch it: every documented key, the load table, TensorBoard's
# files; and after a resume each step once.
. "$(dirname "$0")/common.sh"
need_mpirun

more=(parallel.ep=2 metrics.load_every=3 metrics.peak_gflops=100 checkpoint.every=4 eval.every=6
  eval.rows=2 optim.schedule=constant)
train_well 2 run train.steps=6 "${more[@]}" || finish
rm -r run/checkpoints/step-00000006
printf step-00000004 >run/checkpoints/latest
train_well 2 run train.steps=8 train.recompute=true "${more[@]}" || finish
python3 - "$here/../../docs/formats.md" run <<'P' || fail "metrics"
import glob, json, re, struct, sys
page, run = sys.argv[1:]
text = open(page).read()
table = text[text.index("### metrics.jsonl"):text.index("### expert_load.jsonl")]
keys = []
for row in table.split("\n"):
    if row.startswith("| `"):
        if "`objective.kind: distill` only" in row:
            continue  # distill_test.sh
        names = re.findall(r"`([^`]+)`", row.split("|")[1])
        # `a_layers`, `…_p50` stands for a_layers, a_p50
        keys += [names[0].rsplit("_", 1)[0] + n[1:] if n.startswith("…") else n for n in names]
records = [json.loads(line) for line in open(run + "/metrics.jsonl")]
steps = [r for r in records if "loss" in r]
assert [r["step"] for r in steps] == list(range(1, 9)), [r["step"] for r in steps]
assert [r["step"] for r in records if "eval_loss" in r] == [6, 8], records
documented = set(keys)
for r in steps:
    recomputed = r["step"] > 4
    missing = documented - set(r) - (set() if recomputed else {"hardware_gflops"})
    assert not missing, (r["step"], "documented, not written", missing)
    assert not set(r) - documented, ("written, not documented", set(r) - documented)
    assert 0 < r["goodput"] <= 1 and r["time_forward"] > 0 and r["memory_rss_peak_mib"] > 10
    assert abs(r["share_of_peak"] * 200 - r["model_gflops"]) < 1e-6 * r["model_gflops"]
loads = [json.loads(line) for line in open(run + "/expert_load.jsonl")]
assert [l["step"] for l in loads] == [3, 6], loads
for l in loads:
    assert len(l["counts"]) == 2 and all(len(c) == 8 and sum(c) == 24 * 32 * 2 for c in l["counts"])
files = sorted(glob.glob(run + "/tb/events.out.tfevents.*"))
assert len(files) == 2, files
def records_of(path):  # lengths only: checksums and contents are the unit test's
    data, n = open(path, "rb").read(), 0
    while data:
        size = struct.unpack("<Q", data[:8])[0]
        data, n = data[8 + 4 + size + 4:], n + 1
    return n
assert [records_of(f) for f in files] == [2 + 6 + 1, 2 + 4 + 2], [records_of(f) for f in files]
P
finish
