# Shared by the scripts of this folder: where things are kept, and the set-up of a fresh machine.
# Source it; it defines functions and variables and does nothing else.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${MANIPLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/maniple}
torch_version=${MANIPLE_TORCH_VERSION:-2.14.0}
packages=(g++ cmake ninja-build ccache python3 python3-pip openmpi-bin libopenmpi-dev libhdf5-dev
          libyaml-cpp-dev libasio-dev libfmt-dev libcli11-dev nlohmann-json3-dev libxxhash-dev
          libgtest-dev libgmock-dev)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
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

# Configures and builds preset $1 (default release) into build/ or build-<preset>/.
build() {
  local preset=${1:-release}
  export CCACHE_DIR=${CCACHE_DIR:-$cache/ccache} CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 \
    CCACHE_SLOPPINESS=pch_defines,time_macros
  say "building preset $preset"
  (cd "$root" && cmake --preset "$preset" -DMANIPLE_TORCH_PREFIX="$torch_prefix" >/dev/null &&
    cmake --build --preset "$preset")
}

# Open MPI's settings for jobs of several processes on one small machine.
mpi_environment() {
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
    OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl_vader_single_copy_mechanism=none
}
