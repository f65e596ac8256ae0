#!/usr/bin/env bash
# Quantisation-aware training as a user does it: a model, training on a grid from its checkpoint
# (bit-identical over slices, and when it is killed and resumed), exports that hold the weights that
# were trained, and everything that is refused.
. "$(dirname "$0")/common.sh"
need_mpirun

cat >model.yaml <<'Y'
run: {seed: 7}
train: {steps: 16, precision: fp32}
model: {preset: qwen3_moe, vocab_size: 272, num_key_value_heads: 4}
batch: {rows: 8, seq_len: 32, units: 4}
data: {sources: [{path: text.txt, kind: text}], validation: 0.05}
optim: {lr: 3e-3, warmup_steps: 2, block_elements: 4096}
checkpoint: {every: 4}
metrics: {fingerprint_every: 1}
Y
cp model.yaml tiny.yaml
qat=(model.init_from=base optim.lr=1e-3 quant.format=q4_0)

together train_well 0 base -- train_well 0 other run.seed=8 || finish
together train_well 0 one "${qat[@]}" -- train_well 2 two "${qat[@]}" parallel.slices=2 || finish
together train_well 2 tensor "${qat[@]}" parallel.tp=2 -- train_well 2 experts "${qat[@]}" parallel.ep=2 || finish
compare one two 16 exact
compare one tensor 16 1e-3 1e-2
compare one experts 16 1e-3 1e-2
train_well 0 clipped "${qat[@]}" quant.estimator=clipped || finish
train_well 2 clipped2 "${qat[@]}" quant.estimator=clipped parallel.slices=2 || finish
compare clipped clipped2 16 exact
cmp -s one/metrics.jsonl clipped/metrics.jsonl && fail "the estimators give the same run"

# Killed in the middle and resumed, on two slices.
"$program" train tiny.yaml run.dir=killed "${qat[@]}" >killed.log 2>&1 &
job=$!
for ((i = 0; i < 1200; ++i)); do
  grep -qs '^{"step":6,' killed/metrics.jsonl && break
  kill -0 $job 2>/dev/null || break
  sleep 0.05
done
kill -KILL $job 2>/dev/null
wait $job 2>/dev/null
train_well 2 killed "${qat[@]}" parallel.slices=2 || finish
grep -q "resumed after step" killed.log || fail "the killed run started anew"
compare one killed 16 exact

export_well() {
  timeout $limit "$program" export "$@" --verify >out 2>err || fail "export $*: $(cat err)"
  grep -q '^verified: .*logits equal' out || fail "export $*: $(cat out)"
}
printf '[[72, 101, 108, 108, 111, 44, 32, 119]]' >ids.json
logits() { "$program" logits --model "$1" --ids ids.json --out "$2" || fail "logits of $1"; }
same_logits() {
  logits "$1" a.safetensors
  logits "$2" b.safetensors
  cmp -s a.safetensors b.safetensors || fail "logits of $1 and $2 differ"
}
export_well --model one --format gguf --out one.gguf --fake-quant-out one.safetensors
export_well --model one --format hf --out one-hf
same_logits one one.gguf
same_logits one one-hf
"$program" eval one --rows 8 >eval-run
for model in one.gguf one-hf; do
  "$program" eval $model --config model.yaml --rows 8 >eval-file || fail "eval of $model"
  python3 - <<'P' || fail "eval of $model is not that of the run: $(cat eval-run eval-file)"
import json
a, b = json.load(open("eval-run")), json.load(open("eval-file"))
assert a["eval_loss"] == b["eval_loss"]
P
done
for grid in int4_channel int4_g32; do
  train_well 0 $grid model.init_from=base optim.lr=1e-3 quant.format=$grid train.steps=4 checkpoint.every=4 || finish
  export_well --model $grid --format compressed-tensors --out $grid-ct
  same_logits $grid $grid-ct
done
train_well 0 half model.init_from=base quant.format=q4_0 train.precision=bf16 train.steps=4 checkpoint.every=4 || finish
export_well --model half --format gguf --out half.gguf
same_logits half half.gguf
train_well 0 fp8 model.init_from=base quant.format=sfp8 train.steps=4 checkpoint.every=4 || finish
train_well 0 again model.preset="''" model.hf_config=one-hf/config.json model.init_from=one-hf quant.format=q4_0 train.steps=4 || finish

cases=0
# refuse CODE FRAGMENT COMMAND...
refuse() {
  local code=$1 fragment=$2 got
  shift 2
  cases=$((cases + 1))
  timeout 60 "$program" "$@" >out 2>err
  got=$?
  ((got == code)) || fail "maniple $*: exit code $got, expected $code: $(tail -n 1 err)"
  [ "$(wc -l <err)" = 1 ] && grep -q '^maniple: ' err || fail "maniple $*: stderr must be one line: $(cat err)"
  grep -qF -- "$fragment" err || fail "maniple $*: '$fragment' is not in: $(cat err)"
}
wrong() { refuse "$1" "$2" train tiny.yaml run.dir=wrong "${@:3}"; }
# Grids.
wrong 78 "quant.format" quant.format=int5
wrong 78 "not supported by this build" quant.format=int8_channel
wrong 78 "not supported by this build" quant.learned_scales=true
wrong 78 "not supported by this build" quant.asymmetric=true
wrong 78 "not supported by this build" quant.activations=int8
wrong 78 "not supported by this build" quant.kv_cache=int8
wrong 78 "quant.estimator" quant.estimator=soft
wrong 78 "int4_channel" quant.format=int4_g128
wrong 78 "multiples of 32" quant.format=int4_g32 model.moe_intermediate_size=48
refuse 78 "straddle ranks" plan model.yaml --ranks 2 parallel.tp=2 quant.format=int4_channel
refuse 78 "straddle ranks" plan model.yaml --ranks 2 parallel.etp=2 quant.format=q4_0
refuse 78 "straddle ranks" plan model.yaml --ranks 4 parallel.tp=4 quant.format=q4_0
# Exports.
refuse 64 "--requantise" export --model one --format gguf --quant q8_0 --out x.gguf
refuse 64 "holds" export --model one --format compressed-tensors --out x
refuse 64 "holds" export --model base --format gguf --quant int4_g32 --out x.gguf
refuse 64 "--quant" export --model base --format compressed-tensors --out x
refuse 64 "--format" export --model base --format onnx --out x
refuse 64 "*.gguf" export --model base --format gguf --out x
refuse 78 "sfp8" export --model fp8 --format hf --out x
refuse 74 "exists" export --model one --format hf --out one-hf
refuse 66 "absent" export --model absent --format hf --out x
refuse 64 "--config" eval one.gguf
train_well 0 house model.preset=house train.steps=2 optim.warmup_steps=1 checkpoint.every=2 || finish
refuse 78 "house" export --model house --format hf --out x
# Damaged models.
head -c 3000 one.gguf >cut.gguf
refuse 65 "cut.gguf" logits --model cut.gguf --ids ids.json --out x
cp -r int4_channel-ct bad-ct
sed -i 's/"num_bits": 4/"num_bits": 3/' bad-ct/config.json
refuse 65 "int4" logits --model bad-ct --ids ids.json --out x
cp -r one-hf bad-hf
sed -i 's/"hidden_size": 64/"hidden_size": 96/' bad-hf/config.json
refuse 65 "shape" logits --model bad-hf --ids ids.json --out x
refuse 65 "shape" import --model bad-hf --out imported
refuse 74 "checkpoints" import --model one-hf --out one
[ -e x ] || [ -e x.gguf ] && fail "a refused export left something behind"
"$program" export --model one --format gguf --quant q8_0 --requantise --out eight.gguf >/dev/null || fail "--requantise"
echo "$cases refusals"
finish
