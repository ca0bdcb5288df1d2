#!/bin/bash
# Evaluate editors on CounterFact in eight parts, a SLURM job each, and join them when all are done:
#
#   jobs=$(sbatch --parsable examples/slurm_array.sh --data counterfact.json --limit 2000 -e none -e r-rome)
#   sbatch --dependency="afterok:$jobs" --wrap "rome-lens eval merge parts/* --out whole"
#
# What stands behind the script goes to `rome-lens eval counterfact`. For averages of traces, write `average` in its place
# below, and `average merge` in the second line above.
#
# A part that was preempted, or whose node failed, is queued again and goes on where it was. One that ran out of time goes
# on when it is given again: `sbatch --array=3 examples/slurm_array.sh` and the same options.
#SBATCH --job-name=rome-lens
#SBATCH --array=1-8
#SBATCH --requeue
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=rome-lens-%A-%a.log
set -euo pipefail

parts=${PARTS:-8} # as many as the array has
mkdir -p parts
exec rome-lens eval counterfact --shard "$SLURM_ARRAY_TASK_ID/$parts" --out "parts/$SLURM_ARRAY_TASK_ID" "$@"
