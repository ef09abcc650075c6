"""How fast shards are read, and how much memory that takes.

    python -m jaxnano.data.bench                 # 1 GB of shards written to a temporary folder; ten seconds
    python -m jaxnano.data.bench data/fineweb10B

Every figure is of a process of its own: tokens per second over all training tokens, and the most memory that was ever
resident in it, all pages counted: anonymous ones and those of files, libraries included. Files just written come from
the system's cache, so that nothing is said about the disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.cli import Failure, Output, positive, report_errors
from jaxnano.config.data import GPT2_VOCAB
from jaxnano.data import shards
from jaxnano.data.pipeline import Windows, train_batches
from jaxnano.data.store import Corpus

LENGTH, BATCH, STEPS_PER_CALL = 1024, 512, 10
SHARDS, DOCUMENT_TOKENS = 20, 1000


def check(folder: str) -> int:
    """Read every file through: what happens once to new shards."""
    corpus = shards.load(folder, GPT2_VOCAB, again=True)
    return sum(part.size for split in corpus.parts for part in corpus.parts[split])


def sequential(folder: str) -> int:
    """All training tokens in their order, a call's worth at a time."""
    return sum(block.size for block in _open(folder).tokens("train").blocks(STEPS_PER_CALL * BATCH * LENGTH))


def shuffled(folder: str) -> int:
    """An epoch of shuffled training windows."""
    tokens = _open(folder).tokens("train")
    windows = Windows(tokens, BATCH, LENGTH, 0, STEPS_PER_CALL)
    return sum(windows[call].size for call in range(_calls(tokens.size)))


def grain(folder: str) -> int:
    """The same through Grain, as training reads them; importing Grain takes 190 MB."""
    corpus = _open(folder)
    batches = train_batches(corpus, BATCH, LENGTH, 0, STEPS_PER_CALL)
    return sum(next(batches).size for _ in range(_calls(corpus.tokens("train").size)))


MEASURES: dict[str, Callable[[str], int]] = {
    measure.__name__: measure for measure in (check, sequential, shuffled, grain)}


def _open(folder: str) -> Corpus:
    return shards.load(folder, shards.manifest(Path(folder))["vocab_size"])


def _calls(tokens: int) -> int:
    return max(1, tokens // (STEPS_PER_CALL * BATCH * LENGTH))


def measured(name: str, folder: str) -> dict[str, float]:
    """One measure in a fresh process: tokens_per_s, seconds, peak_mb; raises Failure if it ends badly."""
    command = [sys.executable, "-m", "jaxnano.data.bench", folder, "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"{name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _here(name: str, folder: str) -> dict[str, float]:
    start = time.perf_counter()
    tokens = MEASURES[name](folder)
    seconds = time.perf_counter() - start
    return {"tokens_per_s": tokens / seconds, "seconds": seconds, "peak_mb": _peak_bytes() / 1e6}


def _peak_bytes() -> float:
    """The most memory that was resident in this process."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * float(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def generate(folder: Path, megabytes: int) -> None:
    """Write twenty shards of random documents to a folder, a validation shard the first."""
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        tokens = rng.integers(0, GPT2_VOCAB - 1, megabytes * 500_000 // SHARDS, np.uint16)
        tokens[::DOCUMENT_TOKENS] = GPT2_VOCAB - 1
        shards.write(folder / f"random_{'train' if number else 'val'}_{number:06}.bin", tokens)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("jaxnano.data.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", help="shards to read; none: random ones in a temporary folder")
    parser.add_argument("--megabytes", type=positive, default=1000, metavar="N", help="of random shards (1000)")
    parser.add_argument("--measure", choices=MEASURES, help="one alone, in this process")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(_here(options.measure, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        if options.folder is None:
            generate(Path(folder), options.megabytes)
        rows: dict[str, Any] = {name: measured(name, folder) for name in MEASURES}
    lines = {name: f"{row['tokens_per_s'] / 1e6:8,.1f} M tokens/s  {row['seconds']:6.2f} s  {row['peak_mb']:6.1f} MB "
                   "resident" for name, row in rows.items()}
    Output(options.json).table(folder, rows if options.json else lines)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
