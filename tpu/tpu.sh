#!/usr/bin/env bash
# Runs the project on Google Cloud TPUs: one TPU VM, or a pod slice. See tpu/README.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: tpu/tpu.sh COMMAND NAME --zone ZONE [options] [-- arguments of the run]

  create   ask for the TPU through a queued resource
  setup    wait until it is there; copy the last commit to every worker and install it
  run      start on every worker: research.loop or jaxnano.train, on one VM or over a slice's hosts
  watch    create, setup and run, again with --resume after each preemption, until the run ends
  status   state of the queued resource, and of the run
  logs     follow the log of a worker
  collect  copy the results here
  delete   give the TPU back

  --type TYPE        accelerator: v6e-8 (default), v6e-16, v5p-16 ...
  --bucket GS        gs://BUCKET/FOLDER, where results outlive the TPU (setup, watch, collect)
  --project ID       gcloud's own by default
  --runtime VERSION  software of the VM; the type's by default
  --program P        loop or train; loop on one VM and train on a slice by default
  --on-demand        not spot
  --worker W         of logs (0)
  --out DIR          of collect (runs)
  --interval S       seconds between two looks of watch and setup (60)
  --restarts N       failures of the run, preemptions aside, after which watch gives up (3)
  --dry-run          print every command, and run none
END
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# --- what is asked for -------------------------------------------------------------------------------------------

command="" name="" zone="" project="" type=v6e-8 runtime="" program="" bucket="" out=runs worker=0
interval=60 restarts=3 tier=--spot dry="" slice=""
arguments=()

parse() {
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then usage; exit 0; fi
  [[ $# -ge 2 ]] || fail "COMMAND and NAME: missing; tpu/tpu.sh create my-tpu --zone us-east5-a would do"
  command=$1 name=$2
  shift 2
  while [[ $# -gt 0 ]]; do
    case $1 in
      --) shift; arguments=("$@"); break ;;
      --dry-run) dry=yes; shift; continue ;;
      --on-demand) tier=""; shift; continue ;;
      --zone | --project | --type | --runtime | --program | --bucket | --out | --worker | --interval | --restarts)
        [[ $# -ge 2 ]] || fail "$1: without a value"
        printf -v "${1#--}" '%s' "$2" ;;
      *) fail "$1: no such option; tpu/tpu.sh --help lists them, and arguments of the run follow --" ;;
    esac
    shift 2
  done
}

# needs OPTION VALUE PATTERN EXAMPLE
needs() {
  [[ $2 =~ ^($3)$ ]] || fail "$1: '$2': $4 would do"
}

check() {
  needs COMMAND "$command" 'create|setup|run|watch|status|logs|collect|delete' watch
  needs NAME "$name" '[a-z]([-a-z0-9]{0,48}[a-z0-9])?' my-tpu
  needs --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-east5-a
  needs --type "$type" 'v[0-9]+[a-z]*-[0-9]+' 'v6e-8, v6e-16 or v5p-16'
  needs --project "$project" '|[a-z][-a-z0-9:.]+' my-project
  needs --runtime "$runtime" '|[-a-z0-9.]+' v2-alpha-tpuv6e
  needs --program "$program" '|loop|train' 'loop or train'
  needs --worker "$worker" '[0-9]+|all' '0 or all'
  needs --interval "$interval" '[0-9]+' 60
  needs --restarts "$restarts" '[0-9]+' 3
  case $command in
    setup | watch | collect) needs --bucket "$bucket" 'gs://[a-z0-9][-a-z0-9._]+(/[-A-Za-z0-9._/]*)?' gs://my-bucket/runs ;;
  esac
  if ((10#${type##*-} > 8)); then slice=yes; fi # up to 8 chips, or 8 cores where cores are counted, share a host
  if [[ -z $program ]]; then
    if [[ -n $slice ]]; then program=train; else program=loop; fi
  fi
  if [[ -z $runtime ]]; then
    case $type in
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v4-*) runtime=tpu-ubuntu2204-base ;;
      *) fail "--runtime: missing: no version is known for $type; gcloud compute tpus versions list names them" ;;
    esac
  fi
}

# --- the cloud ---------------------------------------------------------------------------------------------------

# Runs a command, or only prints it.
execute() {
  if [[ -n $dry ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# tpus WORD... : gcloud compute tpus, in our zone and project
tpus() {
  execute gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}
}

# remote WORKER WORD... : the words as one command line there
remote() {
  local workers=$1 line
  shift
  printf -v line '%q ' "$@"
  tpus tpu-vm ssh "$name" "--worker=$workers" "--command=${line% }" --quiet
}

# The queued resource's state, or the node's where that one is active; LOST ... if it was taken away; ABSENT without one.
state() {
  local found
  if ! found=$(tpus queued-resources describe "$name" '--format=value(state.state)' 2>&1); then
    if [[ $found == *NOT_FOUND* ]]; then found=ABSENT; else found="unknown: $found"; fi
  elif [[ $found == ACTIVE ]]; then
    found=$(tpus tpu-vm describe "$name" '--format=value(state)' 2>/dev/null) || found=ACTIVE
  fi
  case $found in SUSPENDED | PREEMPTED | TERMINATED | STOPPED | FAILED) found="LOST ($found)" ;; esac
  printf '%s' "$found"
}

show_state() {
  if [[ -z $dry ]]; then printf '%s\n' "$(state)"; return; fi
  tpus queued-resources describe "$name" '--format=value(state.state)'
  tpus tpu-vm describe "$name" '--format=value(state)'
}

create() {
  tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${tier:+"$tier"}
}

delete() {
  tpus queued-resources delete "$name" --force --quiet
}

await_ready() {
  local found
  if [[ -n $dry ]]; then show_state; return; fi
  until found=$(state) && [[ $found == READY ]]; do
    case $found in
      LOST* | ABSENT)
        printf 'error: %s: %s; tpu/tpu.sh watch would ask for another\n' "$name" "$found" >&2
        return 1 ;;
    esac
    printf '%s: %s\n' "$name" "$found" >&2
    sleep "$interval"
  done
}

# Steps are joined by &&: a caller that asks for the outcome turns bash's own stop at an error off.
setup() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  execute mkdir -p "$root/build" &&
    execute git -C "$root" archive --prefix=jaxnano/ "--output=$root/build/$name.tar.gz" HEAD &&
    tpus tpu-vm scp "$root/build/$name.tar.gz" "$name:jaxnano.tar.gz" --worker=all --quiet &&
    remote all tar --recursive-unlink -xzf jaxnano.tar.gz &&
    remote all bash jaxnano/tpu/worker.sh setup "$bucket"
}

# A trial of the loop trains on the whole slice, unless the arguments say otherwise: the last word counts.
run() {
  local over=()
  if [[ $program == loop && -n $slice ]]; then over=(--devices-per-trial slice); fi
  remote all bash jaxnano/tpu/worker.sh start "$name" "$program" ${over[@]+"${over[@]}"} \
    ${arguments[@]+"${arguments[@]}"}
}

# What the first worker says of the run: running, ended CODE, or nothing on a fresh machine.
progress() {
  remote 0 bash jaxnano/tpu/worker.sh status "$name" 2>/dev/null || true
}

# --- the watch ---------------------------------------------------------------------------------------------------

watch() {
  local found said code failures=0
  if [[ -n $dry ]]; then show_state; delete; create; setup; run; progress; return; fi
  while true; do
    found=$(state)
    case $found in
      READY)
        said=$(progress)
        code=${said#ended }
        case $said in
          running) ;;
          "ended 0") printf '%s: the run has ended\n' "$name"; return ;;
          ended*)
            failures=$((failures + 1))
            if ((failures > restarts)) || [[ $code == 2 ]]; then
              printf 'error: %s: the run ended with code %s; tpu/tpu.sh logs shows why\n' "$name" "$code" >&2
              return 1
            fi
            printf '%s: ended with code %s; starting again\n' "$name" "$code"
            run ;;
          *) setup && run || printf '%s: not set up yet; trying again\n' "$name" ;;
        esac ;;
      LOST*)
        printf '%s: %s; asking for another\n' "$name" "$found"
        failures=0
        delete || true
        create || true ;;
      ABSENT) create || true ;;
      *) printf '%s: %s\n' "$name" "$found" ;;
    esac
    sleep "$interval"
  done
}

main() {
  parse "$@"
  check
  case $command in
    create) create ;;
    setup) await_ready && setup ;;
    run) run ;;
    watch) watch ;;
    status) show_state; progress ;;
    logs) remote "$worker" tail -n 100 -F "$name.log" ;;
    collect) execute mkdir -p "$out/$name" && execute gcloud storage rsync --recursive "${bucket%/}/$name" "$out/$name" ;;
    delete) delete ;;
  esac
}

main "$@"
