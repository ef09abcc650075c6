#!/usr/bin/env bash
# What tpu.sh, and SkyPilot by the files of sky/, run on every host.
#
#   worker.sh install EXTRAS                  install the project with extras: tpu,ray or cuda12,ray
#   worker.sh setup gs://BUCKET/FOLDER        install it for TPUs; mount the bucket as ~/shared
#   worker.sh start NAME loop|train [ARG...]  start, detached; the log is ~/NAME.log
#   worker.sh status NAME                     running, "ended CODE", or nothing
#   worker.sh loop NAME [ARG...]              research.loop, over all hosts where there are several; its exit code
#
# Results outlive the machine in ~/shared/NAME. jaxnano.train writes there. The ledger of research.loop is a database,
# which a mounted bucket cannot hold while it is written: the session is local, and copied once a minute.
# What lies there as data/ becomes the run's data/. Over several hosts the loop runs on the first one, which is the head
# of a Ray that the others join. Who they are is asked of SkyPilot, Slurm or the TPU. Not run on hardware.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
shared=${SHARED:-$HOME/shared}
runs=${RUNS:-$HOME/runs}
python=$HOME/venv/bin/python
ray=$HOME/venv/bin/ray
PATH=$HOME/.local/bin:$PATH

install() {
  ( # hosts may share a home
    flock 9
    if ! [[ -x $python ]]; then # the image's own Python may be too old
      command -v uv >/dev/null || python3 -m pip install --quiet --user uv
      uv venv --quiet --python 3.12 "$HOME/venv"
    fi
    uv pip install --quiet --python "$python" --editable "${root}[$1]"
  ) 9>"$HOME/.jaxnano.lock"
}

setup() {
  install tpu,ray,text,tensorboard
  if ! command -v gcsfuse >/dev/null || ! command -v rsync >/dev/null; then
    local site=https://packages.cloud.google.com/apt key=/usr/share/keyrings/gcsfuse.asc
    curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -q update
    sudo apt-get -q install -y gcsfuse rsync
  fi
  mkdir -p "$shared"
  if ! mountpoint -q "$shared"; then
    local place=${1#gs://}
    local bucket=${place%%/*} folder=${place#*/}
    if [[ $folder == "$place" || -z $folder ]]; then folder=""; fi
    # Checkpoints are folders that get their name when they are whole.
    gcsfuse --implicit-dirs --rename-dir-limit 100000 ${folder:+--only-dir "${folder%/}"} "$bucket" "$shared"
  fi
}

start() {
  local name=$1
  if [[ -f $HOME/$name.pid ]]; then # it waits for a lost worker, or was asked to start again; Ray has its own groups
    pkill -KILL -s "$(cat "$HOME/$name.pid")" || true
  fi
  rm -f "$HOME/$name.code"
  setsid nohup bash "${BASH_SOURCE[0]}" run "$@" >>"$HOME/$name.log" 2>&1 </dev/null &
  echo "$!" >"$HOME/$name.pid"
}

status() {
  local name=$1
  if [[ -f $HOME/$name.code ]]; then
    echo "ended $(cat "$HOME/$name.code")"
  elif [[ -f $HOME/$name.pid ]]; then
    if kill -0 "$(cat "$HOME/$name.pid")" 2>/dev/null; then echo running; else echo "ended 137"; fi
  fi
}

run() {
  local name=$1 program=$2 code=0
  shift 2
  "$program" "$name" "$@" || code=$?
  echo "$code" >"$HOME/$name.code"
}

train() {
  local name=$1
  shift
  feed && cd "$root" && guarded -m jaxnano.train --distributed --out "$shared/$name" --resume "$@"
}

feed() {
  if [[ -d $shared/data ]]; then mkdir -p "$root/data" && rsync -rt "$shared/data/" "$root/data/"; fi
}

# Python as a child that gets the signals sent to this script; returns its exit code.
guarded() {
  local child="" asked="" code=0
  trap 'asked=yes; if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM INT
  "$python" "$@" &
  child=$!
  if [[ -n $asked ]]; then kill -TERM "$child"; fi # it came before there was anybody to tell
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child" && code=0 || code=$?; done
  trap - TERM INT
  return "$code"
}

# --- the loop ----------------------------------------------------------------------------------------------------

loop() {
  local hosts rank=${SKYPILOT_NODE_RANK:-${SLURM_NODEID:-}}
  feed || return 1
  cd "$root"
  mapfile -t hosts < <(addresses)
  if ((${#hosts[@]} < 2)); then
    session "$@"
  elif [[ ${rank:-$(metadata agent-worker-number)} == 0 ]]; then
    lead "${hosts[0]}:6379" "${#hosts[@]}" "$@"
  else
    join "${hosts[0]}:6379"
  fi
}

# All hosts of this run, the first one first. A TPU says NAME:NUMBER:ADDRESS of each, or its name alone.
addresses() {
  if [[ -n ${SKYPILOT_NODE_IPS:-} ]]; then
    printf '%s\n' "$SKYPILOT_NODE_IPS"
  elif [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    scontrol show hostnames "$SLURM_JOB_NODELIST"
  else
    metadata worker-network-endpoints | tr , '\n' | sed 's/.*://'
  fi
}

metadata() {
  curl -fsS --connect-timeout 5 --retry 5 -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# The first host: the head of a Ray, and the session once all hosts are there.
lead() {
  local head=$1 count=$2 name=$3 server code=0
  shift 3
  "$ray" start --head "--port=${head#*:}" --include-dashboard=false --disable-usage-stats --block &
  server=$!
  await "$head" "$server" && all_there "$head" "$count" &&
    session "$name" --executor ray --ray-address "$head" "$@" || code=$?
  kill "$server" 2>/dev/null || true
  wait "$server" || true
  return "$code"
}

all_there() {
  "$python" -c 'import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
there = 0
while there < int(sys.argv[2]):
    if there != (there := sum(node["Alive"] for node in ray.nodes())):
        print(there, "of", sys.argv[2], "hosts are there", flush=True)
    time.sleep(1)' "$@"
}

# Any other host: part of that Ray for as long as there is one.
join() {
  await "$1"
  while "$ray" health-check --address "$1" >/dev/null 2>&1; do
    "$ray" start "--address=$1" --disable-usage-stats --block || sleep 5
  done
}

# await ADDRESS [SERVER]: until a Ray answers there, or its process here has ended
await() {
  until "$ray" health-check --address "$1" >/dev/null 2>&1; do
    if [[ -n ${2:-} ]]; then kill -0 "$2" || return 1; fi
    sleep 5
  done
}

# One session: begun, or gone on with as it was left, on this disk or in ~/shared.
session() {
  local session=$runs/$1 kept=$shared/$1 copier code=0 words=()
  shift
  mkdir -p "$runs"
  if ! [[ -d $session ]] && [[ -f $kept/ledger.sqlite ]]; then rsync -rt "$kept/" "$session/"; fi
  while sleep 60 >/dev/null 2>&1; do keep "$session" "$kept" || true; done &
  copier=$!
  words=("$@")
  if [[ -f $session/ledger.sqlite ]]; then mapfile -t words < <(echo --resume && placing "$@"); fi
  guarded -m research.loop --session "$session" ${words[@]+"${words[@]}"} || code=$?
  kill "$copier" 2>/dev/null || true
  wait "$copier" 2>/dev/null || true
  keep "$session" "$kept" || code=$((code ? code : 1))
  return "$code"
}

# What --resume has to be told again, a word a line: a session knows its track, and what time is left.
placing() {
  local word value="" options="--(executor|ray-address|devices-per-trial|platform)"
  for word; do
    if [[ -n $value || $word =~ ^($options=.*|--tensorboard)$ ]]; then
      echo "$word" && value=""
    elif [[ $word =~ ^$options$ ]]; then
      echo "$word" && value=next
    fi
  done
}

# Copies a session while it is written: the ledger first, so that it never speaks of files that are not there.
keep() {
  local session=$1 kept=$2 snapshot
  [[ -f $session/ledger.sqlite ]] || return 0
  snapshot=$(mktemp) && mkdir -p "$kept" &&
    "$python" -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))' \
      "$session/ledger.sqlite" "$snapshot" &&
    rsync -rt --delete --exclude 'ledger.sqlite*' "$session/" "$kept/" &&
    mv "$snapshot" "$kept/ledger.sqlite"
}

"$@"
