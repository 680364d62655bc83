#!/usr/bin/env bash
# Trains on a Cloud TPU, of one or of many workers, through gcloud (installed and logged in):
#
#   launch/cloud_tpu.sh create  NAME --zone=ZONE --type=TYPE [--version=VERSION] [--spot]
#   launch/cloud_tpu.sh install NAME --zone=ZONE [--setup=COMMAND]
#   launch/cloud_tpu.sh run     NAME --zone=ZONE -- --config=configs/cifar100.py --workdir=/mnt/runs/cifar100
#   launch/cloud_tpu.sh follow  NAME --zone=ZONE [--worker=0]
#   launch/cloud_tpu.sh delete  NAME --zone=ZONE
#   launch/cloud_tpu.sh all     NAME --zone=ZONE --type=TYPE [...] -- --config=... --workdir=...
#
#   --project   the Google Cloud project (default: gcloud's own setting)
#   --type      such as v5litepod-8 (one worker) or v6e-16 (four)
#   --version   the TPU software version (default: the one that belongs to the type)
#   --setup     a command that every worker runs at the end of the installation, to mount storage for example
#   --dry-run   prints the commands, runs none
#
# Everything after '--' goes to kd_jax.main. Its --workdir, and the data, must lie on storage that all workers share:
# NFS, or a bucket mounted with gcsfuse. Addresses of the form gs://... are not supported yet. The same `run` again
# continues a study that was cut off. `all` is create, install, run and follow; delete the TPU yourself, it costs money
# until then.
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

quoted() { # the arguments as one line that a shell reads back
  local word line=
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

verbs='create, install, run, follow, delete or all'
[[ $# -ge 2 && $1 != -* && $2 != -* ]] ||
  fail "usage: launch/cloud_tpu.sh VERB NAME --zone=ZONE [options] [-- flags of kd_jax.main], where VERB is $verbs"
verb=$1 name=$2
shift 2

zone= type= version= project= setup= spot= dry= worker=0
flags=()
while (($#)); do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --spot) spot=yes ;;
    --dry-run) dry=yes ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    *) fail "unknown option $1; allowed: --zone= --type= --version= --project= --setup= --worker= --spot --dry-run, and -- before the flags of kd_jax.main" ;;
  esac
  shift
done

case $verb in create | install | run | follow | delete | all) ;; *) fail "unknown verb '$verb'; it is $verbs" ;; esac
[[ -n $zone ]] || fail "$verb needs the zone of the TPU, such as --zone=us-central1-a"
if [[ $verb == create || $verb == all ]]; then
  [[ -n $type ]] || fail "$verb needs the type of the TPU, such as --type=v5litepod-8"
fi
if [[ $verb == run || $verb == all ]]; then
  config= workdir=
  for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in
      --config=*) config=$flag ;;
      --workdir=gs://* | --config.*.path=gs://*) fail "gs:// is not supported yet (${flag%%=*}); mount the bucket on every worker with gcsfuse and give that path" ;;
      --workdir=*) workdir=$flag ;;
      --coordinator* | --process | --process=* | --processes | --processes=*) fail "$flag is set by this script; leave it out" ;;
    esac
  done
  [[ -n $config && -n $workdir ]] ||
    fail "$verb needs the flags of kd_jax.main after --, at least --config= and --workdir=, such as: -- --config=configs/digits.py --workdir=/mnt/runs/digits"
fi
if [[ -z $dry ]] && ! command -v gcloud >/dev/null; then
  fail 'gcloud is not installed; see https://cloud.google.com/sdk/docs/install, or print the commands with --dry-run'
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

execute() {
  quoted "$@"
  [[ -n $dry ]] || "$@"
}
tpu_vm() { # tpu_vm VERB ARGUMENTS...
  execute gcloud compute tpus tpu-vm "$@" "${where[@]}"
}
on() { # on WORKER COMMAND
  tpu_vm ssh "$name" --worker="$1" --command="$2"
}

create() {
  if [[ -z $version ]]; then
    case $type in
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      v[234]-*) version=tpu-ubuntu2204-base ;;
      *) fail "there is no default software version for the type $type; give one with --version=" ;;
    esac
  fi
  tpu_vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

install() {
  local archive=$root/build/kd_jax.tar.gz bounds
  bounds=$(sed -n 's/^jax\([<>=!~][^ ;#]*\).*/\1/p' "$root/requirements.txt")
  [[ -n $bounds ]] || fail "$root/requirements.txt has no line for jax"
  execute mkdir -p "$root/build"
  execute tar -czf "$archive" --exclude=__pycache__ -C "$root" kd_jax configs requirements.txt
  tpu_vm scp "$archive" "$name:kd_jax.tar.gz" --worker=all
  # uv brings its own Python: that of the TPU's image may be too old.
  on all "set -e; mkdir -p kd_jax; tar -xzf kd_jax.tar.gz -C kd_jax; cd kd_jax; \
curl -LsSf https://astral.sh/uv/install.sh | sh; \
[ -d .venv ] || ~/.local/bin/uv venv -q --python 3.12 .venv; \
~/.local/bin/uv pip install -q --python .venv/bin/python -r requirements.txt 'jax[tpu]$bounds'${setup:+; $setup}"
}

run() {
  on all "cd kd_jax 2>/dev/null || { echo 'error: kd_jax is not installed here; install it first' >&2; exit 2; }; \
if [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then echo 'error: a run is still going on here; follow it' >&2; exit 2; fi; \
rm -f run.status; \
nohup sh -c '.venv/bin/python -m kd_jax.main \"\$@\"; echo \$? > run.status' run $(quoted "${flags[@]}" --coordinator=auto) \
> run.log 2>&1 < /dev/null & echo \$! > run.pid"
}

follow() { # ends with the run, and with its exit status
  on "$worker" "cd kd_jax && tail -n +1 -f --pid=\"\$(cat run.pid)\" run.log; exit \"\$(cat run.status 2>/dev/null || echo 1)\""
}

delete() {
  tpu_vm delete "$name"
}

if [[ $verb == all ]]; then
  create
  install
  run
  follow
  echo "done; delete the TPU with: $(quoted launch/cloud_tpu.sh delete "$name" "${where[@]}")"
else
  "$verb"
fi
