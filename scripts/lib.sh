# Shared by the scripts of this folder: where things are kept, and the set-up of a fresh machine.
# Source it; it defines functions and variables and does nothing else.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${MANIPLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/maniple}
torch_version=${MANIPLE_TORCH_VERSION:-2.14.0}
torch_cuda_version=2.11.0
packages=(g++ cmake ninja-build ccache python3 python3-pip openmpi-bin libopenmpi-dev libhdf5-dev
          libyaml-cpp-dev libasio-dev libfmt-dev libcli11-dev nlohmann-json3-dev libxxhash-dev
          libgtest-dev libgmock-dev libtcmalloc-minimal4)

say() {
  if [ -t 1 ]; then printf '\033[1m==>\033[0m %s\n' "$*"; else printf '==> %s\n' "$*"; fi
}
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Installs the Debian/Ubuntu packages that are missing; without root or sudo it lists them and stops.
install_packages() {
  local missing=() p
  for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  ((${#missing[@]})) || return 0
  local as_root=()
  if ((EUID)); then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=(sudo) ||
      { [ -t 0 ] && command -v sudo >/dev/null && as_root=(sudo); } ||
      die "missing packages and neither root nor sudo to install them. As an administrator:
  apt-get install ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    "${missing[@]}" >/dev/null
}

# LibTorch is the PyPI wheel used as a C++ SDK; libtorch_cpu also needs CUDA's runtime and CUPTI
# libraries, which come as two small wheels. MANIPLE_TORCH_PREFIX names an existing installation
# (the folder that holds torch/).
install_torch() {
  torch_prefix=${MANIPLE_TORCH_PREFIX:-$cache/torch-$torch_version}
  [ -e "$torch_prefix/.complete" ] || [ -n "${MANIPLE_TORCH_PREFIX:-}" ] && return 0
  say "installing LibTorch $torch_version into $torch_prefix"
  rm -rf "$torch_prefix.partial"
  mkdir -p "$cache"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
    --target "$torch_prefix.partial" "torch==$torch_version" \
    'nvidia-cuda-runtime>=13,<14' 'nvidia-cuda-cupti>=13,<14'
  touch "$torch_prefix.partial/.complete"
  mv "$torch_prefix.partial" "$torch_prefix"
}

# The same for builds with CUDA 13: the release that GPU machines have, and the libraries of its
# libtorch_cuda as the wheels that its metadata name (3.8 GiB; what only Python needs is left out).
# MANIPLE_TORCH_CUDA_PREFIX names an existing installation.
install_torch_cuda() {
  torch_prefix=${MANIPLE_TORCH_CUDA_PREFIX:-$cache/torch-cuda-$torch_cuda_version}
  [ -e "$torch_prefix/.complete" ] || [ -n "${MANIPLE_TORCH_CUDA_PREFIX:-}" ] && return 0
  say "installing LibTorch $torch_cuda_version with CUDA into $torch_prefix"
  rm -rf "$torch_prefix.partial"
  mkdir -p "$cache"
  local pip=(python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir
             --root-user-action=ignore --target "$torch_prefix.partial")
  "${pip[@]}" --no-deps "torch==$torch_cuda_version"
  "${pip[@]}" nvidia-cudnn-cu13==9.19.0.56 nvidia-cusparselt-cu13==0.8.0 nvidia-nccl-cu13==2.28.9 \
    nvidia-nvshmem-cu13==3.4.5 \
    'cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.2'
  touch "$torch_prefix.partial/.complete"
  mv "$torch_prefix.partial" "$torch_prefix"
}

# nvcc, which compiles for GPUs; none need be present.
have_nvcc() { command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }

# Configures preset $1 (default release) and builds the targets that follow (default all) into build/
# or build-<preset>/.
build() {
  local preset=${1:-release}
  shift || true
  export CCACHE_DIR=${CCACHE_DIR:-$cache/ccache} CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 \
    CCACHE_SLOPPINESS=pch_defines,time_macros
  say "building preset $preset"
  (cd "$root" && cmake --preset "$preset" -DMANIPLE_TORCH_PREFIX="$torch_prefix" >/dev/null &&
    cmake --build --preset "$preset" ${*:+--target "$@"})
}

# Whether a process may read a sibling's memory (containers often forbid it): then Open MPI moves
# large messages between ranks in one copy, else through shared memory in two.
single_copy_allowed() {
  python3 - <<'P' 2>/dev/null
import ctypes, os, sys
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(b"seen", 4)
read_end, write_end = os.pipe()
sibling = os.fork()
if sibling == 0:
    os.close(write_end)
    os.read(read_end, 1)  # until the parent is done
    os._exit(0)
reader = os.fork()
if reader == 0:
    copy = ctypes.create_string_buffer(4)
    here, there = Span(ctypes.addressof(copy), 4), Span(ctypes.addressof(buffer), 4)
    got = ctypes.CDLL(None).process_vm_readv(sibling, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    os._exit(0 if got == 4 and copy.raw == b"seen" else 1)
_, status = os.waitpid(reader, 0)
os.close(write_end)
os.waitpid(sibling, 0)
sys.exit(status != 0)
P
}

# Open MPI's settings for jobs of several processes on one small machine.
mpi_environment() {
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
    OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl_vader_single_copy_mechanism="$(single_copy_allowed && echo cma || echo none)"
}

# Builds the unit tests and fuzz programs under a sanitizer preset and runs them. thread: those that
# know nothing of torch, since LibTorch itself is not instrumented and its locks are invisible.
# MANIPLE_SANITIZER_TARGETS names other programs.
sanitizer_tier() {
  local preset=$1
  local targets=(test_core test_metrics test_data test_checkpoint test_links test_elastic)
  [ "$preset" = tsan ] || targets+=(test_kernels test_parallel test_nccl test_interop test_model test_moe
    test_objectives test_quant test_optim test_trainer fuzz_manifest fuzz_config fuzz_event_file
    fuzz_megatron fuzz_safetensors fuzz_gguf fuzz_teacher_store fuzz_model_config fuzz_tokenizer)
  [ -z "${MANIPLE_SANITIZER_TARGETS:-}" ] || read -ra targets <<<"$MANIPLE_SANITIZER_TARGETS"
  build "$preset" "${targets[@]}"
  local options="suppressions=$root/tests/$preset.supp"
  # No detect_stack_use_after_return: g++ 12 misaligns 64-byte vectors in the frames that it moves.
  # allocator_may_return_null: hostile files make libraries ask for more memory than there is.
  export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=0:abort_on_error=1:allocator_may_return_null=1
  export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  export LSAN_OPTIONS=$options:print_suppressions=0 TSAN_OPTIONS=$options:halt_on_error=1:allocator_may_return_null=1
  local target
  for target in "${targets[@]}"; do
    say "$preset: $target"
    (cd "$root/build-$preset" && "bin/$target")
  done
  unset ASAN_OPTIONS UBSAN_OPTIONS LSAN_OPTIONS TSAN_OPTIONS
}
