#!/bin/bash
# sbatch docs/slurm.sh fit --config coco_few_shot --config trainer/slurm
# Five minutes before its time limit, the job saves a checkpoint, exits and is requeued; then it resumes.
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8
#SBATCH --time=04:00:00 --signal=USR1@300 --requeue --open-mode=append
run=runs/job-$SLURM_JOB_ID
if [ -e "$run/checkpoints/last.ckpt" ]; then
    resume=--ckpt_path=last
else
    rm -rf "$run" # the job was requeued before it saved a checkpoint
fi
srun python -m vrft "$@" --run_dir "$run" $resume
