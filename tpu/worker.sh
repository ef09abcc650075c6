#!/usr/bin/env bash
# The part of tpu.sh that runs on the workers of a TPU.
#
#   worker.sh setup gs://BUCKET/FOLDER        install the project; mount the bucket as ~/shared
#   worker.sh start NAME loop|train [ARG...]  start, detached; the log is ~/NAME.log
#   worker.sh status NAME                     running, "ended CODE", or nothing
#
# Results outlive the machine in ~/shared/NAME. jaxnano.train writes there. The ledger of research.loop is a database,
# which a mounted bucket cannot hold while it is written: the session is local, and copied once a minute.
set -euo pipefail

shared=$HOME/shared
python=$HOME/venv/bin/python

setup() {
  if ! [[ -x $python ]]; then # the image's own Python may be too old
    python3 -m pip install --quiet --user uv
    "$HOME/.local/bin/uv" venv --quiet --python 3.12 "$HOME/venv"
  fi
  "$HOME/.local/bin/uv" pip install --quiet --python "$python" --editable "$HOME/jaxnano[tpu]"
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
  if [[ $(status "$name") == running ]]; then # it waits for a lost worker, or was asked to start again
    kill -KILL -- "-$(cat "$HOME/$name.pid")"
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
  cd "$HOME/jaxnano"
  case $program in
    train) guarded -m jaxnano.train --distributed --out "$shared/$name" --resume "$@" || code=$? ;;
    loop) loop "$name" "$@" || code=$? ;;
  esac
  echo "$code" >"$HOME/$name.code"
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

loop() {
  local session=$HOME/runs/$1 kept=$shared/$1 copier code=0
  shift
  mkdir -p "$HOME/runs"
  if ! [[ -d $session ]] && [[ -f $kept/ledger.sqlite ]]; then rsync -rt "$kept/" "$session/"; fi
  while sleep 60 >/dev/null 2>&1; do keep "$session" "$kept" || true; done &
  copier=$!
  if [[ -f $session/ledger.sqlite ]]; then
    guarded -m research.loop --session "$session" --resume || code=$? # it knows its track, and what time is left
  else
    guarded -m research.loop --session "$session" "$@" || code=$?
  fi
  kill "$copier" 2>/dev/null || true
  wait "$copier" 2>/dev/null || true
  keep "$session" "$kept"
  return "$code"
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
