#!/bin/bash
# sbatch docs/slurm.sh fit --config coco_few_shot --config trainer/slurm
# 15 minutes before its time limit, the job saves a checkpoint, exits and is requeued; then it resumes.
# These minutes (USR1@900, in seconds) have to be longer than a training step, or an evaluation batch, plus a checkpoint.
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
#SBATCH --time=04:00:00 --signal=USR1@900 --requeue --open-mode=append
run=runs/job-$SLURM_JOB_ID
if [ -e "$run/checkpoints/last.ckpt" ]; then
    resume=--ckpt_path=last
else
    rm -rf "$run" # the job was requeued before it saved a checkpoint
fi
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun doesn't take it from sbatch since SLURM 22.05
# If a rank fails, end the others too: they would wait for it in a collective until that times out.
srun --kill-on-bad-exit=1 python -m vrft "$@" --run_dir "$run" $resume
