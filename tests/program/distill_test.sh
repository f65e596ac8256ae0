#!/usr/bin/env bash
# Distillation as a user runs it: a teacher writes its targets, a student learns from them. The same
# store whatever kills the writer, the same losses whatever the slices or a kill; what does not fit is
# refused with one line.
. "$(dirname "$0")/common.sh"
need_mpirun

student=(objective.kind=distill distill.teacher=teacher distill.store=store distill.shard_tokens=4096
  model.hidden_size=48)
# teach RANKS NAME arguments...: output in NAME.log.
teach() {
  local ranks=$1 name=$2
  shift 2
  launch "$ranks" "$program" teach tiny.yaml "${student[@]}" "$@" >"$name.log" 2>&1
}
teach_well() {
  teach "$@" || fail "teach $2 (ranks $1: ${*:3}) ended with $?: $(tail -n 1 "$2.log")"
}
same_store() { diff -r -x .lock -x .claims -x logs "$1" "$2" >/dev/null || fail "the stores $1 and $2 differ"; }

train_well 0 teacher train.steps=12 checkpoint.every=12 || finish

# Writing: two slices write what one writes; a killed writer loses and doubles nothing; a store grows.
teach_well 0 one
grep -q "^estimate: .* bytes .* s$" one.log || fail "teach says no estimate: $(cat one.log)"
mv store one
teach_well 2 two parallel.slices=2
same_store one store
mv store two
# Another shape of the slice rounds otherwise, which moves few draws; inspect says how many.
teach_well 2 shaped parallel.tp=2 distill.store=shaped
differ() { "$program" inspect one --against "$1" | sed -n 's/.*tokens with other entries *\([0-9]*\) of \([0-9]*\) .*/\1 \2/p'; }
[ "$(differ two)" = "0 197984" ] || fail "equal stores differ: $(differ two)"
read -r moved tokens <<<"$(differ shaped)"
((tokens == 197984 && moved > 0 && moved < tokens / 1000)) ||
  fail "a store written with tp = 2 differs in $moved of $tokens tokens"
setsid mpirun -n 2 "$program" teach tiny.yaml "${student[@]}" parallel.slices=2 >killed.log 2>&1 &
job=$!
for ((i = 0; i < 1200; ++i)); do
  [ "$(ls store 2>/dev/null | grep -c 'h5$')" -ge 10 ] && break
  kill -0 $job 2>/dev/null || break
  sleep 0.02
done
kill -KILL -- -$job
wait $job 2>/dev/null
before=$(ls store | grep -c 'h5$')
((before < $(ls one | grep -c 'h5$'))) || fail "the store was whole before its writer could be killed"
teach_well 2 resumed parallel.slices=2
same_store one store
# Slices under launch share the files; one that is killed is started again.
job=("$program" launch --teach tiny.yaml "${student[@]}" parallel.slices=2 distill.store=launched)
kill_one() {  # kill_one PROGRAM: a process of the job whose name is this, when files are there
  local i pid
  for ((i = 0; i < 1500; ++i)); do
    if (($(ls launched 2>/dev/null | grep -c 'h5$') >= 4)); then
      pid=$(pgrep -n -x "$1" -P "$2") && kill -KILL "$pid" && return
    fi
    sleep 0.02
  done
  fail "no $1 could be killed"
}
"${job[@]}" >launched.log 2>&1 &
launcher=$!
kill_one mpirun $launcher
wait $launcher || fail "launch --teach with a killed slice ended with $?: $(tail -n 1 launched.log)"
grep -q "ended with 137 .*it is started again" launched.log || fail "no slice was killed: $(cat launched.log)"
same_store one launched
rm -r launched
# Slices of two ranks: both must have the same plan while the other slice adds files.
"$program" launch --teach tiny.yaml "${student[@]}" parallel.slices=2 parallel.tp=2 distill.store=pairs >pairs.log 2>&1 ||
  fail "launch --teach with tp = 2 ended with $?: $(tail -n 1 pairs.log)"
same_store shaped pairs
"${job[@]}" >stopped.log 2>&1 &
launcher=$!
for ((i = 0; i < 1500; ++i)); do (($(ls launched 2>/dev/null | grep -c 'h5$') >= 4)) && break; sleep 0.02; done
kill -TERM $launcher
wait $launcher
[ $? -eq 75 ] || fail "launch --teach after TERM: $(tail -n 1 stopped.log)"
pgrep -f "distill.store=launched" && fail "processes are left after TERM"
"${job[@]}" >again.log 2>&1 || fail "launch --teach again ended with $?: $(tail -n 1 again.log)"
same_store one launched
teach_well 0 nothing
grep -q " 0 to write" nothing.log || fail "a whole store was written to: $(cat nothing.log)"
rm -r store
teach_well 0 part --rows-of-run train.steps=2 optim.warmup_steps=0
part=$(sed -n 's/.* \([0-9]*\) to write.*/\1/p' part.log)
((part == 48)) || fail "2 steps of 24 rows need $part rows"
teach_well 0 rest
"$program" inspect store >inspect.log || fail "inspect: $(cat inspect.log)"
for word in "counts, 50 draws" "covered mass" "teacher's loss" "257, bytes" "per token" "6187 of 32"; do
  grep -qF "$word" inspect.log || fail "inspect says nothing of '$word': $(cat inspect.log)"
done
"$program" verify store | grep -q "all good" || fail "verify does not like the store"

# Training: equal bits on one and two slices, after a kill, and with the teacher inside the step.
train_well 0 whole "${student[@]}"
for key in ce_loss kd_loss kl_loss teacher_entropy distill_alpha; do
  grep -q "\"$key\":" whole/metrics.jsonl || fail "no metric $key"
done
train_well 2 slices "${student[@]}" parallel.slices=2 && compare whole slices 12 exact
train_well 0 online "${student[@]}" distill.store="''" && compare whole online 12 exact
train_well 2 tensors "${student[@]}" parallel.tp=2 && compare whole tensors 12 2e-5 1e-4
train_well 0 stopped "${student[@]}" checkpoint.every=3 &
job=$!
for ((i = 0; i < 1200; ++i)); do
  grep -qs '^{"step":7,' stopped/metrics.jsonl && break
  kill -0 $job 2>/dev/null || break
  sleep 0.02
done
kill -KILL $(ps -o pid= --ppid $job 2>/dev/null) $job 2>/dev/null
wait $job 2>/dev/null
train_well 2 stopped "${student[@]}" checkpoint.every=3 parallel.slices=2 && compare whole stopped 12 exact
grep -q "resumed after step" stopped.log || fail "the killed run was not resumed: $(head -n 40 stopped.log)"
# Mixture and schedule, top-k targets, everything inside the slice.
top=(distill.store=top distill.variant=topk_ghost distill.top_k=10 distill.alpha=0.5
  distill.schedule=linear distill.alpha_end=0.1)
teach_well 2 top "${top[@]}" parallel.ep=2 --rows-of-run
train_well 0 ghost "${student[@]}" "${top[@]}"
train_well 4 ghost-slices "${student[@]}" "${top[@]}" parallel.slices=2 parallel.ep=2
compare ghost ghost-slices 12 2e-5 1e-4
train_well 0 smaller "${student[@]}" "${top[@]}" distill.top_k=4 distill.variant=topk_to_label
train_well 0 full "${student[@]}" distill.store="''" distill.variant=full distill.temperature=2
train_well 2 full-slices "${student[@]}" distill.store="''" distill.variant=full \
  distill.temperature=2 parallel.slices=2 && compare full full-slices 12 exact

# What does not fit: wrong CODE FRAGMENT command...: one line on stderr.
cases=0
wrong() {
  local code=$1 fragment=$2 got
  shift 2
  cases=$((cases + 1))
  OMPI_MCA_orte_execute_quiet=1 timeout 60 "$@" >out 2>err
  got=$?
  ((got == code)) || fail "$*: exit code $got, expected $code: $(tail -n 1 err)"
  [ "$(wc -l <err)" = 1 ] && grep -q '^maniple: ' err || fail "$*: expected one message: $(cat err)"
  grep -qF -- "$fragment" err || fail "$*: '$fragment' is not in: $(cat err)"
}
wrong_run() { wrong "$1" "$2" "$program" train tiny.yaml run.dir=wrong "${student[@]}" "${@:3}"; }
wrong_teach() { wrong "$1" "$2" "$program" teach tiny.yaml "${student[@]}" "${@:3}"; }
damaged() { rm -rf bad; cp -r store bad; }

wrong_run 66 "absent" distill.store=absent
wrong_run 66 "absent" distill.store="''" distill.teacher=absent
wrong_run 66 "absent" distill.tokenizer=absent
wrong_run 78 "without a teacher" distill.store="''" distill.teacher="''"
wrong_run 78 "topk" distill.variant=topk_raw
wrong_run 78 "50 draws" distill.draws=49
wrong_run 78 "needs sampled" distill.variant=sample_renorm
wrong_run 78 "full" distill.variant=full
wrong_run 78 "temperature" distill.temperature=2
wrong_run 78 "10 ids" distill.store=top distill.variant=topk_raw distill.top_k=11
wrong_run 78 "its temperature is 1" distill.store=top distill.variant=topk_raw distill.top_k=4 distill.temperature=2
wrong_run 78 "vocabulary of 257" model.vocab_size=300
wrong_run 78 "vocabulary of 257" model.vocab_size=300 distill.store="''"
wrong_run 78 "rows of 32 tokens" batch.seq_len=16
wrong_run 65 "tokenizer" distill.tokenizer=tiny.yaml
head -c 100000 text.txt >other.txt
wrong_run 65 "no rows of data source other.txt" 'data.sources=[{path: other.txt, kind: text}]'
mv store kept; teach_well 0 few --rows-of-run train.steps=2 optim.warmup_steps=0
wrong_run 65 "has no targets for row"
rm -r store; mv kept store
damaged; sed -i 's/after it/before it/' bad/header.json
wrong_run 65 "alignment" distill.store=bad
damaged; sed -i 's/"seed": 1/"seed": 2/' bad/header.json
wrong_run 65 "header" distill.store=bad
damaged; echo "{}" >bad/header.json
wrong_run 65 "header.json" distill.store=bad
damaged; file=$(ls bad/*.h5 | head -n 1); cp "$file" bad/again.h5
wrong_run 65 "again.h5" distill.store=bad
damaged; file=$(ls bad/*.h5 | head -n 1); truncate -s 1000 "$file"
wrong_run 65 "$file" distill.store=bad
damaged
for file in bad/*.h5; do
  printf '\x55' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") - 3000)) conv=notrunc status=none
done
wrong_run 65 "row" distill.store=bad
wrong 65 "bad/" "$program" verify bad
wrong 65 "targets" "$program" inspect one --against top
wrong 66 "absent" "$program" inspect one --against absent
wrong 65 "bad/" mpirun -n 2 "$program" train tiny.yaml run.dir=wrong "${student[@]}" parallel.slices=2 \
  distill.store=bad
wrong_teach 66 "absent" distill.teacher=absent
wrong_launch() { wrong "$1" "$2" "$program" launch tiny.yaml "${student[@]}" "${@:3}"; }
wrong_launch 78 "elastic.hosts=a,b" --teach elastic.hosts=a,b
wrong_launch 78 "distill.store is ''" --teach distill.store="''"
wrong_launch 64 "belongs to --teach" --rows-of-run
wrong_teach 78 "distill.store" distill.store="''"
wrong_teach 78 "full" distill.variant=full distill.store=new
wrong_teach 78 "temperature" distill.temperature=2 distill.store=new
wrong_teach 78 "vocabulary" model.vocab_size=300
wrong_teach 65 "num: 50 in the store, 40 here" distill.draws=40
wrong_teach 65 "seq_len" batch.seq_len=16
wrong 65 "seed: 1 in the store, 3 here" mpirun -n 2 "$program" teach tiny.yaml "${student[@]}" \
  parallel.slices=2 distill.seed=3
echo "  $cases cases refused"
finish
