# One function for jobs that train: run until done or until Slurm warns of the wall time.
# shellcheck shell=bash
# A bash trap waits for a foreground child, hence `&` and `wait`; see README.md.
# A training that heard a signal and saved ends with 75 and leaves the file `requeue` in its folder.

newest_checkpoint() { # RUN: name of the newest checkpoint, empty where there is none
    find "$1" -maxdepth 1 -name 'seen-*.pt' -printf '%f\n' 2>/dev/null | sort | tail -n 1 || true
}

written_since() { # SECONDS NAME FOLDER...: first file of the name written after that moment
    local began=$1 name=$2
    shift 2
    find "$@" -maxdepth 2 -name "$name" -newermt "@$began" -print -quit 2>/dev/null || true
}

until_walltime() { # RUN COMMAND...: exit code of the command, or 0 after a requeue
    local run=$1 warned=0 code=0 child note="$DSNB_DATA/.requeue-$SLURM_JOB_ID" last began marker
    began=$(date +%s)
    shift
    "$@" & # in the background, or the trap would run when it is too late
    child=$!
    trap 'warned=1; kill -USR1 "$child"' USR1
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # the signal ended `wait`, not the child
        code=0
        wait "$child" || code=$?
    done
    trap - USR1
    # A training may first train what it needs (runs/features), and stop there.
    marker=$(written_since "$began" requeue "$run" "$DSNB_DATA/runs")
    if { [ "$code" = 0 ] && [ -z "$marker" ] && [ -f "$run/product.json" ]; } ||
        [ -n "$(written_since "$began" product.json "$run")" ] ||
        { [ "$warned" = 0 ] && [ "$code" != 75 ]; }; then
        rm -f "$note"
        return "$code"
    fi
    [ -z "$marker" ] || run=$(dirname "$marker")
    [ -n "$marker" ] || echo "warned, but cut before it had saved: the last checkpoint counts" >&2
    # Files decide, since a cut save ends with any code: requeue only if the run moved on.
    last=$(newest_checkpoint "$run")
    if [ -z "$last" ] || [ "$last" = "$(cat "$note" 2>/dev/null)" ]; then
        echo "no new checkpoint since the last start: lengthen --time or lower checkpoint_every" >&2
        return 1
    fi
    local again="${SLURM_RESTART_COUNT:-0}" # unset at the first start
    if [ "$again" -ge "${DSNB_MAX_REQUEUE:-10}" ]; then
        echo "requeued $again times already: submit again to go on" >&2
        return 1
    fi
    echo "$last" >"$note"
    scontrol requeue "$SLURM_JOB_ID"
}
