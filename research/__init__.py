"""The autonomous researcher: it proposes, checks, runs, learns, proves and reports."""

import os

# The loop's matrices are small, and its workers keep every core busy: with more threads than one a decision took four
# times as long. One thread also gives the same last bit on any number of cores, so that decisions can be replayed.
for _threads in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_threads, "1")
