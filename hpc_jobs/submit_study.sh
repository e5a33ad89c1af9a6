#!/bin/bash
# Submit a whole study: each job waits for the one before, and is cancelled if that one fails.
#   hpc_jobs/submit_study.sh [--dry-run] [--shards N]
# --dry-run prints every line and runs none; --shards prepares as an array of N, then collects.
# The import (of the phantom: its drawing, too) runs here, on the login node, before the jobs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() { # NAME EXPECTED
    printf 'dsnb: %s is %q, expected %s\n' "$1" "${!1:-}" "$2" >&2
    exit 2
}

check() { # PATTERN EXPECTED NAME...: each value must match as a whole
    local LC_ALL=C pattern=$1 expected=$2 name # in other locales a-z has more than ASCII
    for name in "${@:3}"; do
        [[ ${!name:-} =~ ^($pattern)$ ]] || refuse "$name" "$expected"
    done
}

check_settings() { # before anything uses them: they end up in commands and file names
    local word='[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}' part='[A-Za-z0-9_][A-Za-z0-9_.@+-]*' name
    check "($word)?" "letters, digits and _.- only" \
        SBATCH_ACCOUNT SBATCH_PARTITION SBATCH_QOS DSNB_QOS_GPU DSNB_QOS_CPU DSNB_NAME
    check "$word" "a preset's name" DSNB_PRESET
    check '(none|gpu(:[A-Za-z0-9_.-]+)?)' "none, gpu or gpu:TYPE" DSNB_GRES
    check '[1-9][0-9]{0,3}' "a number" DSNB_GPUS DSNB_CORES DSNB_NODES
    check '([1-9][0-9]{0,3})?' "a number" DSNB_SHARDS
    for name in DSNB_DATA DSNB_RAW DSNB_BIN; do
        [ "$name" = DSNB_RAW ] && [ -z "${DSNB_RAW:-}" ] && continue
        check "/?$part(/$part)*/?" "a path of letters, digits and _.@+- only" "$name"
        [ -d "${!name}" ] || refuse "$name" "a folder that is there"
    done
}

run() { # print a command, then run it unless this is a dry run
    printf '%q ' "$@"
    echo
    [ -n "$dry" ] || "$@"
}

submit() { # AFTER STAGE OPTION...: print the line, set `job` to the new job's number
    local words=(sbatch --parsable --job-name="${DSNB_NAME:+$DSNB_NAME-}$2")
    [ -z "$1" ] || words+=(--kill-on-invalid-dep=yes --dependency="afterok:$1")
    words+=("${@:3}" "hpc_jobs/$2.sbatch")
    printf '%q ' "${words[@]}"
    echo
    job="JOB_$2"
    [ -n "$dry" ] || job=$("${words[@]}") || stop_chain
    job=${job%%;*} # a federation adds its cluster's name
    jobs+=("$job")
}

stop_chain() { # a refused line leaves no half of a chain behind
    [ ${#jobs[@]} = 0 ] || scancel "${jobs[@]}"
    echo "dsnb: sbatch refused this line; the jobs before it are cancelled (${jobs[*]-})" >&2
    exit 1
}

dry="" jobs=()
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=yes ;;
    --shards) DSNB_SHARDS=${2:-absent} && shift $(($# > 1)) ;;
    *) printf 'dsnb: %q is unknown, expected --dry-run or --shards N\n' "$1" >&2 && exit 2 ;;
    esac
    shift
done
export DSNB_SITE="${DSNB_SITE:-hpc_jobs/site.sh}" DSNB_SHARDS="${DSNB_SHARDS:-}"
[ -f "$DSNB_SITE" ] || refuse DSNB_SITE "a file, filled in: copy hpc_jobs/site.example.sh"
# shellcheck source=hpc_jobs/site.example.sh
source "$DSNB_SITE"
check_settings

study=(--preset "$DSNB_PRESET" --data-root "$DSNB_DATA")
if [ -n "$DSNB_RAW" ]; then
    study+=(--raw "$DSNB_RAW")
else
    run python -m dsnb phantom "${study[@]}"
fi
run python -m dsnb import "${study[@]}"

gres() { [ "$DSNB_GRES" = none ] && echo none || echo "$DSNB_GRES:$1"; }
cpu=(--cpus-per-task="$DSNB_CORES") gpu=(--cpus-per-task="$DSNB_CORES" --gres="$(gres 1)")
node=(--cpus-per-task=$((DSNB_CORES * DSNB_GPUS)) --gres="$(gres "$DSNB_GPUS")")
if [ -n "$DSNB_QOS_CPU" ]; then cpu+=(--qos="$DSNB_QOS_CPU"); fi
if [ -n "$DSNB_QOS_GPU" ]; then gpu+=(--qos="$DSNB_QOS_GPU") node+=(--qos="$DSNB_QOS_GPU"); fi

job=""
if [ -n "$DSNB_SHARDS" ]; then submit "" 02_prepare "${cpu[@]}" --array="1-$DSNB_SHARDS"; fi
submit "$job" 02_prepare "${cpu[@]}"
submit "$job" 03_train_vae "${node[@]}" --nodes="$DSNB_NODES"
submit "$job" 04_encode "${gpu[@]}"
encoded=$job
submit "$encoded" 05_map "${gpu[@]}"
submit "$encoded" 07_train_diffusion "${node[@]}"
submit "$job" 07_sample "${gpu[@]}"
echo "jobs: ${jobs[*]}"
