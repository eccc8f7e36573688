#!/usr/bin/env bash
# Train under Slurm:
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# Optional: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
# SRUN_ARGS may be several arguments.
# shellcheck disable=SC2086
exec srun --partition="$1" --job-name="$2" --gres="gpu:$gpus_per_node" \
  --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${@:4}"
