"""A stand-in for the loop, for tests to kill: takes the lease, starts workers, prints their process numbers, stays.

Arguments: the session's folder, and the address of a Ray cluster to run on instead of this machine alone.
"""

import json
import sys
from pathlib import Path

from research.execute.local import LocalExecutor
from research.execute.ray import connect
from research.ledger.session import Session
from research.machine.place import Place


def main():
    session = Session.create(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        executor = connect(sys.argv[2]).start(session.workers, warm=())
    else:
        executor = LocalExecutor([Place(()), Place(())], session.workers, warm=())
    for worker, target in enumerate(("hang", "spin")):
        folder = str(session.trial_dir(f"job-{worker}"))
        job = {"id": f"job-{worker}", "attempt": 1, "dir": folder, "target": f"worker_targets:{target}", "args": {}}
        executor.submit(worker, job)
    started = set()
    while True:
        started |= {message.worker for message in executor.poll(5.0) if message.kind == "progress"}
        if len(started) == 2:
            print(json.dumps([executor.pid(0), executor.pid(1)]), flush=True)
            started = set(range(3))


if __name__ == "__main__":
    main()
