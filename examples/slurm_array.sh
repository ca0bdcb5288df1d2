#!/bin/bash
# Evaluate editors on CounterFact in eight parts, a SLURM job each, and join them when all are done:
#
#   jobs=$(sbatch --parsable examples/slurm_array.sh --data counterfact.json --limit 2000 -e none -e r-rome)
#   sbatch --dependency="afterok:$jobs" --wrap "rome-lens eval merge parts/* --out whole"
#
# What stands behind the script goes to `rome-lens eval counterfact`; for averages of traces, write `average` for it.
# A job that was cut off is given to SLURM again, and goes on where it was.
#SBATCH --job-name=rome-lens
#SBATCH --array=1-8
#SBATCH --requeue
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=rome-lens-%A-%a.log
set -euo pipefail

shard="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
mkdir -p parts
exec rome-lens eval counterfact --shard "$shard" --out "parts/$SLURM_ARRAY_TASK_ID" "$@"
