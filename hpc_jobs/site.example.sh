# What differs between clusters. Copy to hpc_jobs/site.sh (git-ignored) and fill it in; every job
# sources it on its node, and so does submit_study.sh. What is exported already wins, and nothing
# else names a site. DSNB_CLUSTER chooses a part; remove the other one.
# shellcheck shell=bash

# What to run, on which data. Outputs belong on scratch.
export DSNB_PRESET="${DSNB_PRESET:-full}"
export DSNB_DATA="${DSNB_DATA:?the data root, a folder on a file system that all nodes see}"
export DSNB_RAW="${DSNB_RAW:-}"                 # BIDS folder; empty for the phantom
export DSNB_BIN="${DSNB_BIN:?bin folder of the environment, on a file system that all nodes see}"

case "${DSNB_CLUSTER:-mn5}" in
mn5) # MareNostrum 5 ACC. No --mem, which it rejects: memory follows the cores.
    export SBATCH_ACCOUNT="${SBATCH_ACCOUNT:?the project that pays}"
    export DSNB_QOS_GPU="${DSNB_QOS_GPU:-acc_ehpc}" # acc_debug: 2 h, at most 8 nodes, one job
    export DSNB_QOS_CPU="${DSNB_QOS_CPU:-gp_ehpc}"  # the default there, without GPUs
    export DSNB_GRES=gpu
    export DSNB_GPUS="${DSNB_GPUS:-4}"   # of a node: SLURM_GPUS_ON_NODE may report otherwise
    export DSNB_CORES="${DSNB_CORES:-20}" # a GPU
    if type module >/dev/null 2>&1; then
        module purge # wheels of torch bring their own CUDA
    fi
    ;;
plain) # Any other; as it stands without GPUs, account and QoS, in the default partition.
    # sbatch reads SBATCH_PARTITION and SBATCH_ACCOUNT, and refuses empty ones: leave them unset.
    export DSNB_QOS_GPU="${DSNB_QOS_GPU:-}" DSNB_QOS_CPU="${DSNB_QOS_CPU:-}"
    export DSNB_GRES="${DSNB_GRES:-none}" # gpu, or for example gpu:h100
    export DSNB_GPUS="${DSNB_GPUS:-1}"    # processes a node; without GPUs they meet over gloo
    export DSNB_CORES="${DSNB_CORES:-4}"  # of a process
    ;;
*)
    printf 'dsnb: DSNB_CLUSTER is %q, expected mn5 or plain\n' "$DSNB_CLUSTER" >&2
    return 2
    ;;
esac
export DSNB_NODES="${DSNB_NODES:-2}" # of the VAE's training, 1 to 8

unset PYTHONPATH PYTHONHOME # left over, they break imports
export PATH="$DSNB_BIN:$PATH"
# Compute nodes have no internet: nothing may try, and fail late.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline
export SLURM_CPU_BIND=none # the ranks of one launcher share their task's cores
export NCCL_DEBUG=WARN     # no interface is forced: detection stays on
