#!/usr/bin/env bash
# Run collab.main on this host of a TPU slice, and start it again when it was killed or a peer died.
#
#   tpu/run.sh --config=configs/quickstart.py --workdir=runs/quickstart --config.mesh.data=8
#
# A run resumes from its newest checkpoint. Statuses that start it again: 134 (jax aborts a process
# whose peer died), 137 (SIGKILL), 143 (SIGTERM before the run could answer it). Anything else ends.
# PYTHON, RESTARTS, PAUSE_S: the interpreter, the most restarts (100), the pause before one (10).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
restarts=${RESTARTS:-100}
is_stopping=
child=
forward() { # the run saves a checkpoint and leaves; it isn't started again
  is_stopping=yes
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap forward TERM INT

for ((attempt = 0; ; attempt++)); do
  "$python" -m collab.main --coordinator=auto "$@" &
  child=$!
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the run
    status=0
    wait "$child" || status=$?
  done
  child=
  case $status in
    134 | 137 | 143) ;;
    *) exit "$status" ;;
  esac
  if [[ -n $is_stopping ]]; then exit "$status"; fi
  if ((attempt >= restarts)); then
    echo "error: status $status after $restarts restarts; the run's own lines above say why" >&2
    exit "$status"
  fi
  echo "status $status; restart $((attempt + 1)) of at most $restarts" >&2
  sleep "${PAUSE_S:-10}"
  if [[ -n $is_stopping ]]; then exit "$status"; fi
done
