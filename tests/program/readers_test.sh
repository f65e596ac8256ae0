#!/usr/bin/env bash
# Exports read by other people's programs (scripts/reader_environment installs them; without them
# skipped): gguf and compressed-tensors dequantise to the weights that were trained, transformers
# computes the logits, llama.cpp (where it is compiled) makes the same choices.
. "$(dirname "$0")/common.sh"
cache=${MANIPLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/maniple}
[ -e "$cache/readers/.complete" ] || { echo "skipped: scripts/reader_environment has not run"; exit 77; }

# One process reads everything: starting it takes longer than the checks.
check() { echo "$*" >>checks; }
# logits_of MODEL EXPORT IDS [KIND [FOLDER]]: EXPORT computes what MODEL does.
logits_of() {
  "$program" logits --model "$1" --ids "$3" --out "$2.logits" || fail "logits of $1"
  check "${4:-logits}" "$2" "$2.logits" "$3" "${@:5}"
}
# export_as NAME MODEL FORMAT arguments...: with the dequantised tensors in NAME.fake
export_as() {
  "$program" export --model "$2" --format "$3" --out "$1" --fake-quant-out "$1.fake" "${@:4}" >/dev/null ||
    fail "export $*"
}
golden=$here/../data/golden
python3 -c 'print([[(7 * t * t + 5 * t + 3) % 64 for t in range(32)]])' >small.json
for family in qwen3_moe qwen2_moe mixtral gemma3_text; do
  export_as $family-hf "$golden/$family" hf --quant bf16
  logits_of $family-hf $family-hf small.json
  export_as $family-ct "$golden/$family" compressed-tensors --quant int4_channel
  check packed $family-ct $family-ct.fake
  logits_of $family-ct $family-ct small.json
done

# Models with a BPE tokenizer, as a hub has them, imported and exported.
readers() { PYTHONPATH=$cache/readers:$cache/readers-llama timeout 1000 python3 "$@"; }
readers "$here/make_models.py" text.txt hub >/dev/null 2>made.err || fail "$(tail -n 1 made.err)"
for family in qwen3_moe qwen2_moe mixtral gemma3_text; do
  "$program" import --model hub/$family --out $family >/dev/null || fail "import of $family"
  export_as $family.gguf $family gguf
  logits_of $family $family.gguf small.json llama hub/$family
done

# A model of bytes, trained on the grids.
cat >model.yaml <<'Y'
run: {seed: 7}
train: {steps: 30, precision: fp32}
model: {preset: qwen3_moe, vocab_size: 272}
batch: {rows: 8, seq_len: 64, units: 4}
data: {sources: [{path: text.txt, kind: text}]}
optim: {lr: 3e-3, warmup_steps: 2}
checkpoint: {every: 30}
Y
cp model.yaml tiny.yaml
train_well 0 base || finish
python3 -c 'print([list(b"First Citizen: Before we proceed")])' >bytes.json
export_as base.gguf base gguf
logits_of base base.gguf bytes.json llama
for grid in q4_0 int4_g32 int4_channel; do
  train_well 0 $grid model.init_from=base quant.format=$grid train.steps=8 checkpoint.every=8 || finish
done
export_as q4_0.gguf q4_0 gguf
check gguf q4_0.gguf q4_0.gguf.fake
logits_of q4_0 q4_0.gguf bytes.json llama
export_as q4_0-hf q4_0 hf
logits_of q4_0 q4_0-hf bytes.json
for grid in int4_g32 int4_channel; do
  export_as $grid-ct $grid compressed-tensors
  check packed $grid-ct $grid-ct.fake
  logits_of $grid $grid-ct bytes.json
done
readers "$here/readers.py" <checks 2>read.err ||
  fail "$(tail -n 1 read.err)"
finish
