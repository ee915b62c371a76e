#!/bin/bash

#SBATCH --job-name=tdmpc2
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --output=slurm_logs/tdmpc2_%j.txt
#SBATCH --error=slurm_errors/tdmpc2_%j.txt

root=$(dirname "$(dirname "$PWD")")
outcome=success
PYTHONPATH=$root python "$root/sota-implementations/tdmpc2/tdmpc2.py" \
  collector.total_frames=5000 || outcome=error
echo "tdmpc2_${SLURM_JOB_ID}=$outcome" >> report.log
