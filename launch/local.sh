#!/usr/bin/env bash
# Trains with several processes on this machine, as several machines would:
#
#   launch/local.sh 2 --config=configs/digits.py [flags of kd_jax.main]
#
# One process uses all GPUs of a machine: this is for CPUs, and to try a study before it goes to many machines.
#   PYTHON           the interpreter (default: .venv/bin/python if it exists, else python3)
#   KD_JAX_DEVICES   so many fake CPU devices in each process
#   KD_JAX_PORT      port of process 0 (default: a free one)
#   KD_JAX_PATIENCE  seconds that the others have to stop when one has failed (default: 15); then they are killed
# Process 0 prints as usual, the lines of process 1 start with '[1] '. SIGINT, SIGTERM and SIGHUP are passed on. Exit
# status 0 if all processes end with 0, otherwise that of the first that failed; the others are stopped.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

number='^[1-9][0-9]*$'
[[ $# -ge 2 && $1 =~ $number && $2 == -* ]] ||
  fail 'usage: launch/local.sh PROCESSES --config=CONFIG [flags of kd_jax.main], such as: launch/local.sh 2 --config=configs/digits.py'
processes=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
fi
command -v "$python" >/dev/null || fail "there is no Python at $python; set PYTHON to the interpreter that has jax"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [[ -n ${KD_JAX_DEVICES:-} ]]; then
  [[ $KD_JAX_DEVICES =~ $number ]] || fail "KD_JAX_DEVICES is $KD_JAX_DEVICES; it must be the number of fake CPU devices in each process"
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$KD_JAX_DEVICES"
fi
[[ ${KD_JAX_PATIENCE:-1} =~ $number ]] || fail "KD_JAX_PATIENCE is $KD_JAX_PATIENCE; it must be a whole number of seconds"
port=${KD_JAX_PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}

run() { # run PROCESS FLAGS...: becomes that process
  local process=$1
  shift
  exec "$python" -m kd_jax.main "$@" --coordinator="localhost:$port" --processes="$processes" --process="$process"
}

prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

pids=() running=()
signal() { # signal NAME: to every process that still runs
  local i
  for i in "${!pids[@]}"; do
    [[ -z ${running[i]} ]] || kill -s "$1" "${pids[i]}" 2>/dev/null || true
  done
}
asked=
trap 'asked=yes; signal INT' INT
trap 'asked=yes; signal TERM' TERM HUP
trap 'signal KILL' EXIT

set -m # a process group each: what is typed at the terminal reaches them once, through this script
for ((i = 0; i < processes; i++)); do
  if ((i == 0)); then
    run "$i" "$@" </dev/null &
  else
    run "$i" "$@" </dev/null > >(prefixed "$i") 2>&1 &
  fi
  pids+=("$!") running+=(yes)
done
set +m

patience=${KD_JAX_PATIENCE:-15} # most of them wait for the one that failed, and hear nothing
failed=0 left=$processes deadline=
while ((left > 0)); do
  sleep 0.2 || true # a signal cuts it short
  for i in "${!pids[@]}"; do
    if [[ -n ${running[i]} ]] && ! kill -0 "${pids[i]}" 2>/dev/null; then
      status=0
      wait "${pids[i]}" 2>/dev/null || status=$?
      running[i]=
      left=$((left - 1))
      if ((status != 0 && failed == 0)); then
        failed=$status
        deadline=$((SECONDS + patience))
        if [[ -z $asked ]] && ((left > 0)); then
          echo "process $i ended with status $status; stopping the others" >&2
          signal TERM
        fi
      fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    signal KILL
  fi
done
exit "$failed"
