# What differs between clusters. Copy to hpc_jobs/site.sh (git-ignored), fill in, and
#   source hpc_jobs/site.sh
# before sbatch; every job sources the same file again on its node. Nothing else names a site.

# Who pays, and in which queue. sbatch reads the SBATCH_* names itself.
export SBATCH_ACCOUNT="${SBATCH_ACCOUNT:-}"     # required on MareNostrum 5
export DSNB_QOS_GPU="${DSNB_QOS_GPU:-acc_ehpc}" # acc_debug: 2 h, at most 8 nodes, one job at a time
export DSNB_QOS_CPU="${DSNB_QOS_CPU:-gp_ehpc}"  # the default there, without GPUs

# What to run, on which data. Outputs belong on scratch.
export DSNB_PRESET="${DSNB_PRESET:-full}"
export DSNB_DATA="${DSNB_DATA:?the data root, on a file system that all nodes see}"
export DSNB_RAW="${DSNB_RAW:-}"                 # BIDS folder; empty for the phantom
export DSNB_GPUS="${DSNB_GPUS:-4}"              # of a node: SLURM_GPUS_ON_NODE may report otherwise
export DSNB_BIN="${DSNB_BIN:?bin folder of the environment, installed where there is internet}"

# MareNostrum 5: start from no modules (wheels of torch bring their own CUDA). `module` exists in
# login shells only, and a left-over PYTHONPATH breaks imports.
if type module >/dev/null 2>&1; then
    module purge
fi
unset PYTHONPATH PYTHONHOME
export PATH="$DSNB_BIN:$PATH"

# Compute nodes have no internet: nothing may try, and fail late.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline
export SLURM_CPU_BIND=none # the ranks of one torchrun share their task's cores
export NCCL_DEBUG=WARN     # no interface is forced: detection stays on

# A plain Slurm cluster: export SBATCH_PARTITION, set both DSNB_QOS_* to the names it knows, set
# DSNB_GPUS to the GPUs of its nodes and give sbatch the matching --gres and --cpus-per-task.
