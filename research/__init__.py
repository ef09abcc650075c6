"""The autonomous researcher: it proposes, checks, runs, learns, proves and reports. `loop.py` is the main command.

The files beside it are commands too, and nobody imports them; only machine/ and text.py are the ground that all use:
what this machine is (a kind of device: machine/accelerators.py; what its workers are told: place.py), and how numbers
are written. What commands use lies in wings. A wing imports those above it in this list; learn, lanes and execute stand
side by side, and learn sees neither contract nor ledger. `lint-imports` checks it.

    contract/   what may be tried. An objective: track.py. A rule of the gate: gate.py. What a proposal is: part.py
                The speedruns' records, configs/records: records.py
    ledger/     what happened. A kind of event: kinds.py and its table; what it does to the state: state.py
    learn/      numbers only. A statistic: learn/compare.py; the sealed test: anytime.py. Ending a run: watch.py
    lanes/      who proposes. A lane: a file, its name and class in __init__.py; ideas/*.yaml are the catalogue's,
                techniques.yaml is the list that they are held against, by ideas.py
    execute/    where it runs. An executor: a module, and its entry in executors.py; what a worker does: trial.py
    decide/     what next: its __init__ says which file does what; scheduler.py calls them
    show/       what it amounts to: facts.py. A page section: templates/report.j2, fed by report.py; a plot: figures.py
    outside/    people, coding agents and language models, through one inbox; llm/ is a lane that works beside the loop,
                page/ what a browser shows: a view is a function of views.py and its template, a chart one of charts.py
    check/      tools that attack all of this: fuzz, corrupt, crashtest; bench/ measures its claims

One edit's way: decide/intake asks the lanes and the gate judges; choose picks the run that gains most (learn/allocate);
dispatch hands it to execute; belief takes the result in; ablation, proof and prove lead the best to a crown; show/facts
says what it amounts to. Each step is an event in the ledger first.
"""

import os

import jaxnano  # noqa: F401 - from here on Ctrl-C is quiet while a command imports what it needs

# The loop's matrices are small, and its workers keep every core busy: with more threads than one a decision took four
# times as long. One thread also gives the same last bit on any number of cores, so that decisions can be replayed.
for _threads in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_threads, "1")
