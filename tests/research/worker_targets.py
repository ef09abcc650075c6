"""What test workers run: small targets that need no jax, imported by name in the worker's process."""

import errno
import os
import signal
import sys
import time

from research.execute import Cancelled

HOARD = []


def answer(args, report):
    """Report twice, print on every channel a library may use, and return."""
    print("from print")
    os.write(1, b"from C\n")
    print("to stderr", file=sys.stderr)
    report({"step": 1, "loss": float("nan")})
    report({"step": 2, "loss": 0.5})
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {
        "outcome": "completed",
        "loss": {"search": args["loss"]},
        "pid": os.getpid(),
        "cores": cores,
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "stdin": sys.stdin.read(),
    }


def environment(args, report):
    """What a worker finds in its environment, by value."""
    return {"outcome": "completed", "loss": {}, "found": sorted(os.environ.values())}


def spin(args, report):
    """Report for ever."""
    while True:
        report({"alive": True})
        time.sleep(0.001)


def stop_with_what_it_has(args, report):
    """Catch the cancellation and return a result of one's own."""
    try:
        spin(args, report)
    except Cancelled as reason:
        return {"outcome": "killed", "reason": str(reason), "steps": 7}


def hang(args, report):
    """Announce itself, then never report again."""
    report({"hanging": True})
    signal.pause()


def write_and_die(args, report):
    """Die after the result is in the folder and before the worker can say so."""
    from pathlib import Path

    from research.ledger.session import write_result

    write_result(Path(args["dir"]), 1, {"outcome": "completed", "loss": {"search": 1.0}})
    os._exit(3)


def grow(args, report):
    """Take memory and keep it, then wait to be told that the successor may be there."""
    HOARD.append(bytearray(os.urandom(1 << 20) * 64))
    report({"grown": True})
    return {"outcome": "completed", "pid": os.getpid()}


def fail(args, report):
    """Raise."""
    raise ValueError("no such luck")


def run_out(args, report):
    """Raise what a machine raises that has no room left, or no memory."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if args["what"] == "room" else MemoryError()


def leave(args, report):
    """Try to end the worker."""
    sys.exit(4)


def bad_result(args, report):
    """Return what JSON cannot hold."""
    return {"outcome": "completed", "what": object()}


def read_files(args, report):
    """Say what lies in the folder that the arguments name."""
    from pathlib import Path

    folder = Path(args["folder"])
    found = {str(path.relative_to(folder)): len(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    return {"outcome": "completed", "loss": {}, "found": found}


def leave_files(args, report):
    """Leave a folder with files larger than one message, at the place that the arguments name."""
    from pathlib import Path

    print("left something")
    report({"step": 1, "loss": float("nan")})
    repeats = 70_000  # 17 MiB
    (Path(args["folder"]) / "deep").mkdir(parents=True)
    (Path(args["folder"]) / "deep" / "weights").write_bytes(bytes(range(256)) * repeats)
    (Path(args["folder"]) / "empty").touch()
    return {"outcome": "completed", "loss": {"search": args["loss"]}, "here": args["folder"], "repeats": repeats}
