#!/usr/bin/env bash
# maniple replay: a step of a past run has the bits that the run had, whatever the number of slices;
# what was tampered with is seen.
. "$(dirname "$0")/common.sh"
need_mpirun

train_well 4 run parallel.slices=2 parallel.ep=2 checkpoint.every=4 checkpoint.keep=9 batch.units=0 || finish

# replay RANKS arguments...: output in replay.log; returns the exit code
replay() {
  local ranks=$1
  shift
  launch "$ranks" "$program" replay "$@" >replay.log 2>&1
}
equal='equal to the row of the run, bit for bit'
replay 2 run --step 7 --out units.jsonl || fail "replay of step 7: $(tail -n 1 replay.log)"
grep -q "from run/checkpoints/step-00000004, 2 steps to go" replay.log || fail "not from the checkpoint: $(head -n 1 replay.log)"
grep -q "$equal" replay.log || fail "step 7: $(tail -n 1 replay.log)"
replay 2 run --step 3 || fail "replay of step 3"
grep -q "from the first weights, 2 steps" replay.log && grep -q "$equal" replay.log || fail "step 3: $(cat replay.log)"
python3 - <<'P' || fail "units.jsonl"
import json
units = [json.loads(line) for line in open("units.jsonl")]
row = next(r for r in map(json.loads, open("run/metrics.jsonl")) if r.get("step") == 7)
assert [u["unit"] for u in units] == list(range(len(units))) and len(units) > 1
assert sum(u["targets"] for u in units) == row["tokens"], row
mean = sum(u["loss"] * u["targets"] for u in units) / row["tokens"]
assert abs(mean - row["loss"]) < 1e-9, (mean, row["loss"])
assert [l["layer"] for l in units[0]["layers"]] == ["0", "1", "embedding, norm, head"]
assert len({u["fingerprint"] for u in units}) == len(units)
P
replay 2 run --step 7 --unit 1 --out one.jsonl || fail "one unit"
python3 -c '
import json
one, all = json.loads(open("one.jsonl").read()), [json.loads(l) for l in open("units.jsonl")]
assert one == all[1], (one, all[1])' || fail "a unit by itself differs"

sed -i 's/"step":7,"loss":[0-9.]*/"step":7,"loss":1.25/' run/metrics.jsonl
replay 2 run --step 7
[ $? -eq 79 ] && grep -q "DIFFERS from the row of the run: loss 1.25" replay.log || fail "tampered row: $(cat replay.log)"
replay 2 run --step 13
[ $? -eq 78 ] && grep -q "it has steps 1 to 12" replay.log || fail "step 13: $(cat replay.log)"
replay 2 run --step 2 --unit 99
[ $? -eq 78 ] && grep -q "a step has units 0 to" replay.log || fail "unit 99: $(cat replay.log)"
replay 0 nowhere --step 2
[ $? -eq 66 ] || fail "no run: $(cat replay.log)"
finish
