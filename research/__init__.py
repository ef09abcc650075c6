"""The autonomous researcher: it proposes, checks, runs, learns, proves and reports.

`loop.py` is the main command; the other files beside it are commands too, thin ones, and nobody imports them. What they
use lies in wings, each of which imports only those above it here:

    machine.py text.py   the ground: cores, fingerprints; how numbers are written
    contract/   what may be tried: track, proposal, the gate that judges it, what a recipe's parts do
    ledger/     what happened: events, the session's folder, the state they fold to, the rules they keep
    learn/      numbers only: features, the Gaussian process, what to run next, comparisons. A new statistic goes here
    lanes/      who proposes: a file a lane, and ideas/*.yaml. A new lane goes here
    execute/    where it runs: the protocol, this machine, Ray, and the trial itself. A new executor goes here
    decide/     what next: belief, intake, proof, and the scheduler that leads them
    show/       what it amounts to: facts, plots, report, terminal. A new page goes here
    outside/    people, coding agents and language models: inbox, desk, llm/
    check/      tools that attack all of this: fuzz, corrupt, crashtest, simulate

One edit's way: lanes -> contract/gate -> decide/intake -> learn/allocate -> decide/scheduler -> execute -> ledger ->
decide/belief -> decide/proof -> show/facts.
"""

import os

# The loop's matrices are small, and its workers keep every core busy: with more threads than one a decision took four
# times as long. One thread also gives the same last bit on any number of cores, so that decisions can be replayed.
for _threads in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_threads, "1")
