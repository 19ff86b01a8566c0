#!/usr/bin/env bash
# Promote a standalone directory and grow it into a replicated cluster on this machine, with stage banners and
# artifacts/migration/summary.{txt,json}. Every change of state is `nokv migrate`'s: this script only calls it.
#
#   scripts/ops/migrate-cluster.sh --workdir DIR [--dir CLUSTER_DIR] [--replicas N] [--meta-roots N] [--keep] [--dry-run]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

python=${PYTHON:-}
if [[ -z $python ]]; then
  if [[ -x $here/.venv/bin/python ]]; then python=$here/.venv/bin/python; else python=python3; fi
fi
nokv() { "$python" -m nokv.cli "$@"; }

workdir='' dry_run=''
arguments=("$@")
while (($#)); do
  case $1 in
    --workdir) workdir=${2:-}; shift ;;
    --workdir=*) workdir=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; echo; nokv migrate run --help; exit 0 ;;
  esac
  shift
done
if [[ -z $workdir ]]; then
  echo "migrate-cluster.sh: --workdir is required (see --help)" >&2
  exit 2
fi

echo "=== before: nokv migrate status --workdir $workdir" >&2
nokv migrate status --workdir "$workdir" >&2
nokv migrate run ${arguments[@]+"${arguments[@]}"}
if [[ -z $dry_run ]]; then
  echo "=== after: nokv migrate status --workdir $workdir" >&2
  nokv migrate status --workdir "$workdir" >&2
fi
