# Shared by the tests of this folder: source it with the arguments of the test. It makes a scratch
# folder with text.txt and tiny.yaml, goes there, and removes it at the end (not with MANIPLE_KEEP=1).

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 1 ] || { echo "usage: $0 PATH_OF_MANIPLE" >&2; exit 2; }
program=$(realpath "$1")
failures=0
limit=120  # seconds that a run may take
scratch=$(mktemp -d)
cp "$here/tiny.yaml" "$scratch/"
cp "$here/../data/tinyshakespeare-200k.txt" "$scratch/text.txt"
cd "$scratch"
[ -n "${MANIPLE_KEEP:-}" ] && echo "scratch folder $scratch" || trap 'rm -rf "$scratch"' EXIT

command -v python3 >/dev/null || { echo "skipped: python3 is missing"; exit 77; }
need_mpirun() { command -v mpirun >/dev/null || { echo "skipped: mpirun is missing"; exit 77; }; }

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}
finish() {
  ((failures == 0)) && echo "all passed" || echo "$failures failed"
  exit $((failures > 0))
}

# launch RANKS command...: under mpirun, also for one rank; RANKS 0 means without mpirun.
launch() {
  local ranks=$1
  shift
  if ((ranks == 0)); then timeout $limit "$@"; else timeout $limit mpirun -n "$ranks" "$@"; fi
}

# train RANKS RUN overrides...: trains tiny.yaml into folder RUN, output in RUN.log; returns its
# exit code.
train() {
  local ranks=$1 run=$2
  shift 2
  launch "$ranks" "$program" train tiny.yaml run.dir="$run" "$@" >"$run.log" 2>&1
}
# As train, but must succeed.
train_well() {
  train "$@" && return
  fail "run $2 (ranks $1: ${*:3}) ended with $?: $(tail -n 1 "$2.log")"
  return 1
}

# together COMMAND -- COMMAND ...: runs the train_well commands at once (one_by_one=1: in
# turn); true when all succeeded.
together() {
  local pids=() command=() word pid good=0
  for word in "$@" --; do
    if [ "$word" != -- ]; then
      command+=("$word")
      continue
    fi
    (failures=0; "${command[@]}") &
    pids+=($!)
    [ -z "${one_by_one:-}" ] || wait "$!"
    command=()
  done
  for pid in "${pids[@]}"; do wait "$pid" || good=1; done
  ((good == 0)) || failures=$((failures + 1))
  return $good
}

compare() { python3 "$here/compare.py" "$@" || fail "$*"; }
