# What every job sources first, from the root of the checkout: the site's settings and functions.
# Jobs use what is set here, and Slurm sets what is used.
# shellcheck shell=bash disable=SC2034,SC2153
# shellcheck source=hpc_jobs/site.example.sh
source "${DSNB_SITE:-hpc_jobs/site.sh}"

study=(--preset "$DSNB_PRESET" --data-root "$DSNB_DATA")
[ -z "${DSNB_RAW:-}" ] || study+=(--raw "$DSNB_RAW")
# Since Slurm 22.05 srun does not take over the cores of sbatch: a step would have one core.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

set_share() { # set `share`: nothing, or the share of the scans that this task of an array makes
    local parts="${DSNB_SHARDS:-}"
    share=()
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || return 0
    # Tasks that are submitted again (--array=3) are fewer than the shares.
    if [ -z "$parts" ]; then
        parts=$SLURM_ARRAY_TASK_MAX
        if [ "$SLURM_ARRAY_TASK_MIN" != 1 ] || [ "$parts" = 1 ] ||
            [ "$SLURM_ARRAY_TASK_COUNT" != "$parts" ]; then
            echo "dsnb: DSNB_SHARDS is absent, expected the number of all shares, since this" \
                "array is not 1-N; export it and submit again" >&2
            exit 2
        fi
    fi
    share=(--shard "$SLURM_ARRAY_TASK_ID/$parts")
}

# Run `dsnb VERB` in RANKS processes on each of NODES nodes. The launcher is torchrun that passes
# USR1 on to its ranks, gives them 180 s to save, and ends with the cause; static rendezvous ends
# cleanly. `exec`, so that a signal to the background process reaches srun: call it as `launch &`.
launch() { # NODES RANKS VERB...
    local first
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    # The name of a node need not be one that resolves; its address does.
    DSNB_HEAD=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    # Of this job alone where jobs share a node, and below the ports that systems lend out.
    DSNB_PORT=$((12000 + (SLURM_JOB_ID + ${attempt:-0}) % 20000))
    export DSNB_HEAD DSNB_PORT
    export OMP_NUM_THREADS="${DSNB_CORES:-1}"
    # Where one launcher has ended the others have 200 s to tell why, and to end with their own
    # code: with --kill-on-bad-exit Slurm ended them first, and the step with 143.
    # shellcheck disable=SC2016  # expanded on each node, where SLURM_NODEID is known
    exec srun --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=200 \
        bash -c 'exec python -m dsnb.launcher --nnodes="$1" --nproc-per-node="$2" \
            --node-rank="$SLURM_NODEID" --master-addr="$DSNB_HEAD" --master-port="$DSNB_PORT" \
            "${@:3}"' launch "$@"
}
