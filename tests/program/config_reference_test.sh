#!/usr/bin/env bash
# docs/config.md is what the program prints, behind one comment line that says how it is made.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 PATH_OF_MANIPLE" >&2; exit 2; }
page=$(dirname "${BASH_SOURCE[0]}")/../../docs/config.md
printed=$(mktemp)
trap 'rm -f "$printed"' EXIT
head -n 1 "$page" >"$printed"
"$1" config reference >>"$printed"
diff -u "$page" "$printed" || {
  echo "FAILED: docs/config.md differs from the program; its first line says how to write it again"
  exit 1
}
