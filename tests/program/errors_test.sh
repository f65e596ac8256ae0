#!/usr/bin/env bash
# What a user can do wrong: the exit code, and one line on stderr that begins with "maniple:" and
# says what is wrong. Under mpirun too: the same code, the message once, and nothing hangs.
. "$(dirname "$0")/common.sh"

cases=0
# expect CODE FRAGMENT COMMAND...: runs maniple COMMAND.
expect() {
  local code=$1 fragment=$2 got
  shift 2
  cases=$((cases + 1))
  timeout 60 "$program" "$@" >out 2>err
  got=$?
  ((got == code)) || fail "maniple $*: exit code $got, expected $code: $(tail -n 1 err)"
  [ "$(wc -l <err)" = 1 ] && grep -q '^maniple: ' err ||
    fail "maniple $*: stderr must be one line that begins with maniple: $(cat err)"
  grep -qF -- "$fragment" err || fail "maniple $*: '$fragment' is not in: $(cat err)"
}
# As expect, with `train tiny.yaml run.dir=wrong`.
wrong() { expect "$1" "$2" train tiny.yaml run.dir=wrong "${@:3}"; }
# As wrong, on two ranks. Open MPI adds its own words about the exit code unless it is told not to;
# with them out of the way stderr must be the one message.
wrong_mpi() {
  local code=$1 fragment=$2 got
  shift 2
  cases=$((cases + 1))
  OMPI_MCA_orte_execute_quiet=1 timeout 60 mpirun -n 2 "$program" train tiny.yaml run.dir=wrong "$@" \
    >out 2>err
  got=$?
  ((got == code)) || fail "mpirun train $*: exit code $got, expected $code: $(tail -n 1 err)"
  [ "$(wc -l <err)" = 1 ] && grep -q '^maniple: ' err || fail "mpirun train $*: expected one message: $(cat err)"
  grep -F -- "$fragment" err | grep -q '^maniple: ' || fail "mpirun train $*: '$fragment' is not in: $(cat err)"
}

# 64: the command line.
expect 64 "subcommand"
expect 64 "tarin" tarin tiny.yaml
expect 64 "config" train
expect 64 "--fast" train tiny.yaml --fast
expect 64 "--ranks" plan tiny.yaml --ranks 0
expect 64 "--top-p" sample run --top-p 2
expect 64 "--dtype" logits --model run --ids ids.json --out out.safetensors --dtype int8
expect 64 "config print needs a file" config print

# 66: what the user named does not exist.
expect 66 "absent.yaml" train absent.yaml
expect 66 "absent/run" inspect absent/run
expect 66 "absent.json" logits --model run --ids absent.json --out out.safetensors
wrong 66 "absent.txt" 'data.sources=[{path: absent.txt, kind: text}]'
wrong 66 "absent.idx" 'data.sources=[{path: absent, kind: megatron}]'
wrong 66 "absent.json" model.preset="''" model.hf_config=absent.json
wrong 66 "absent-checkpoint" run.resume=absent-checkpoint
wrong 66 "absent-weights" model.init_from=absent-weights
mkdir empty
expect 66 "empty" verify empty

# 78: keys and values.
wrong 78 "optim.lr" optim.lrr=1
wrong 78 "optim" optimm.lr=1
wrong 78 "parallel.slice_size" parallel.slice_size=2
wrong 78 "train.steps" train.steps=many
wrong 78 "train.steps" train.steps=0
wrong 78 "train.precision" train.precision=fp16
wrong 78 "optim.betas" 'optim.betas=[0.9]'
wrong 78 "optim.warmup_steps" optim.warmup_steps=13
wrong 78 "group.key=value" optim.lr
wrong 78 "batch.rows" batch.rows=25
wrong 78 "parallel.slices" parallel.slices=2
wrong 78 "ep=3" parallel.ep=3
wrong 78 "batch.units" parallel.slices=13
wrong 78 "run.device=cuda" run.device=cuda
wrong_hosts() { expect 78 "$1" launch tiny.yaml run.dir=wrong parallel.slices=2 "${@:2}"; }
wrong_hosts "'b:0' is no host" elastic.hosts=a,b:0
wrong_hosts "'-oProxyCommand=x' is no host" elastic.hosts=-oProxyCommand=x
wrong_hosts "'a' stands there twice" elastic.hosts=a,a
wrong_hosts "room for 1 slices and the job has 2" elastic.hosts=a:1
wrong_hosts "{host}" elastic.hosts=a,b elastic.remote=ssh
wrong_hosts "set elastic.address" elastic.hosts=a.invalid,b.invalid
wrong_hosts "'b.invalid' is no numeric address" elastic.hosts=a,b elastic.address=b.invalid
wrong_hosts "use letters" elastic.hosts=a,b elastic.address=127.0.0.1 run.dir="'wrong; folder'"
wrong 78 "moe.dispatcher" moe.dispatcher=broadcast
wrong 78 "gpt5" model.preset=gpt5
wrong 78 "vocab_size" model.vocab_size=256
wrong 78 "num_experts_per_tok" model.num_experts_per_tok=9
wrong 78 "hidden_sise" model.hidden_sise=72
wrong 78 "weight" 'data.sources=[{path: text.txt, kind: text, weight: -1}]'
wrong 78 "data.sources" 'data.sources=[]'
expect 78 "num_experts" plan tiny.yaml --ranks 3 parallel.ep=3
expect 78 "num_attention_heads" train tiny.yaml run.dir=wrong model.num_attention_heads=0
printf 'optim: {lr: 1e-3}\noptim: {lr: 2e-3}\n' >twice.yaml
expect 78 "twice.yaml:2" train twice.yaml
printf 'train:\n  steps: 12\n  stepps: 13\n' >typo.yaml
expect 78 "typo.yaml:3" train typo.yaml
printf 'train: {steps: [}\n' >syntax.yaml
expect 78 "syntax.yaml:1" train syntax.yaml
expect 78 "example: 1:0:20:master:5:30" launch tiny.yaml run.dir=wrong faults.flip=1:0:20:nowhere:5:30
expect 78 "faults.sticky: '1:0'" launch tiny.yaml run.dir=wrong faults.sticky=1:0
wrong 78 "sdc.canary_every" sdc.canary_every=-2
wrong 78 "sdc.max_strikes" sdc.max_strikes=0
echo '[1, 2]' >list.json
wrong 78 "list.json" model.preset="''" model.hf_config=list.json

# 65: contents.
printf 'short' >short.txt
wrong 65 "short.txt" 'data.sources=[{path: short.txt, kind: text}]'
head -c 64 text.txt >bad.idx
head -c 64 text.txt >bad.bin
wrong 65 "bad.idx" 'data.sources=[{path: bad, kind: megatron}]'
mkdir weights
printf '{"model_type": "qwen3_moe"}' >weights/config.json
printf 'xx' >weights/model.safetensors
wrong 65 "model.safetensors" model.init_from=weights

train_well 0 good train.steps=2 optim.warmup_steps=1 checkpoint.every=1 || finish
step=checkpoints/step-00000002
cp text.txt kept.txt
tr a b <kept.txt >text.txt
wrong 65 "contents of data.sources" run.resume=good
cp kept.txt text.txt
wrong 78 "model.hidden_size" run.resume=good model.hidden_size=144
wrong 78 "batch.rows" run.resume=good batch.rows=48

# damage COMMAND...: a copy of the good run named `bad`, on whose last step COMMAND is run.
damage() {
  rm -rf bad
  cp -r good bad
  (cd bad/$step && eval "$1")
}
damage 'truncate -s -1 *.h5'
expect 65 "bytes" verify bad/$step
damage 'printf x | dd of="$(ls *.h5)" bs=1 seek=5000 conv=notrunc status=none'
expect 65 "XXH3" verify bad/$step
wrong 65 "XXH3" run.resume=bad/$step
damage 'rm *.h5'
expect 65 "is missing" inspect bad/$step
damage 'echo "{" >manifest.json'
expect 65 "manifest" verify bad/$step

# All checkpoints of a run bad: the run must not start anew over them.
expect_refusal() {
  wrong 65 "run.resume=never" run.dir=bad train.steps=4
  grep -q "step-00000001 refused.*step-00000002 refused\|step-00000002 refused.*step-00000001 refused" err ||
    fail "the reasons are missing: $(cat err)"
  cmp -s bad/metrics.jsonl good/metrics.jsonl || fail "a refused resume touched metrics.jsonl"
}
damage 'truncate -s -1 *.h5 ../step-00000001/*.h5'
expect_refusal
damage 'rm *.h5; rm ../step-00000001/manifest.json'
expect_refusal

printf '[[1, 2], [3]]' >ragged.json
expect 65 "2 and 1" logits --model good --ids ragged.json --out out.safetensors
printf '[[1, 257]]' >range.json
expect 65 "257" logits --model good --ids range.json --out out.safetensors
printf 'ids' >text.json
expect 65 "JSON" logits --model good --ids text.json --out out.safetensors
printf '[[1, 2]]' >ids.json

# 74: outputs. (Everything is writable to root: these places are no folders.)
wrong 74 "text.txt" run.dir=text.txt/run
mkdir -p wrong-metrics/metrics.jsonl
wrong 74 "metrics.jsonl" run.dir=wrong-metrics
expect 74 "text.txt/out" logits --model good --ids ids.json --out text.txt/out
exec 9>good/.lock
flock 9
wrong 74 "held its lock" run.dir=good
exec 9>&-

if command -v mpirun >/dev/null; then
  wrong_mpi 78 "optim.lr" optim.lrr=1
  wrong_mpi 78 "ep=3" parallel.ep=3
  wrong_mpi 78 "num_experts" parallel.ep=2 model.num_experts=7
  wrong_mpi 66 "absent.txt" 'data.sources=[{path: absent.txt, kind: text}]'
  wrong_mpi 65 "short.txt" 'data.sources=[{path: short.txt, kind: text}]'
  damage 'truncate -s -1 *.h5'
  wrong_mpi 65 "bytes" run.resume=bad/$step
  damage 'truncate -s -1 *.h5 ../step-00000001/*.h5'
  wrong_mpi 65 "run.resume=never" run.dir=bad
  wrong_mpi 74 "text.txt" run.dir=text.txt/run  # only rank 0 sees this one
fi
echo "$cases cases"
finish
