#!/usr/bin/env bash
# Exports read by other people's programs (scripts/reader_environment installs them; without them
# skipped): gguf and compressed-tensors dequantise to the weights that were trained, transformers
# computes the logits, llama.cpp (where it is compiled) makes the same choices.
. "$(dirname "$0")/common.sh"
cache=${MANIPLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/maniple}
[ -e "$cache/readers/.complete" ] || { echo "skipped: scripts/reader_environment has not run"; exit 77; }

# check KIND EXPORT REFERENCE
check() {
  local path=$cache/readers
  [ "$1" = llama ] && path=$cache/readers-llama:$path
  PYTHONPATH=$path timeout $limit python3 "$here/readers.py" "$@" >read.out 2>read.err
  local got=$?
  grep -h "^$1\|^skipped" read.out
  ((got == 0)) || { ((got == 77)) && [ "$1" = llama ]; } || fail "$*: $(tail -n 1 read.err)"
}
golden=$here/../data/golden
python3 -c 'print([[(7 * t * t + 5 * t + 3) % 64 for t in range(32)]])' >ids.json
for family in qwen3_moe qwen2_moe mixtral gemma3_text; do
  "$program" export --model "$golden/$family" --format hf --quant bf16 --out $family-hf >/dev/null || fail "hf"
  "$program" logits --model $family-hf --ids ids.json --out a.safetensors && check logits $family-hf a.safetensors
  "$program" export --model "$golden/$family" --format compressed-tensors --quant int4_channel --out $family-ct \
    --fake-quant-out fake.safetensors >/dev/null || fail "ct"
  check packed $family-ct fake.safetensors
  "$program" logits --model $family-ct --ids ids.json --out a.safetensors && check logits $family-ct a.safetensors
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
python3 -c 'print([list(b"First Citizen: Before we proceed")])' >ids.json
for grid in q4_0 int4_g32 int4_channel; do
  train_well 0 $grid model.init_from=base quant.format=$grid train.steps=8 checkpoint.every=8 || finish
  "$program" logits --model $grid --ids ids.json --out a.safetensors
  if [ $grid = q4_0 ]; then
    "$program" export --model $grid --format gguf --out $grid.gguf --fake-quant-out fake.safetensors >/dev/null || fail $grid
    check gguf $grid.gguf fake.safetensors
    check llama $grid.gguf a.safetensors
    "$program" export --model base --format gguf --out base.gguf >/dev/null || fail base
    "$program" logits --model base --ids ids.json --out b.safetensors
    check llama base.gguf b.safetensors
  else
    "$program" export --model $grid --format compressed-tensors --out $grid-ct --fake-quant-out fake.safetensors >/dev/null || fail $grid
    check packed $grid-ct fake.safetensors
    check logits $grid-ct a.safetensors
  fi
done
"$program" export --model q4_0 --format hf --out q4_0-hf >/dev/null || fail hf
"$program" logits --model q4_0 --ids ids.json --out a.safetensors && check logits q4_0-hf a.safetensors
finish
