"""Whether this machine can run a track, row by row: what was found and, where it will not do, what would mend it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from jaxnano import data
from jaxnano.cli import Failure, UserError
from jaxnano.device import PEAK_FLOPS
from research import machine
from research.contract.track import Track
from research.execute import executors
from research.ledger.registry import Registry, default_path
from research.text import duration

PEAK_SHARE, CORE_FLOPS = 0.3, 5e10  # of a GPU or TPU, guessed; FLOP/s of a CPU's core, as measured
LEAST_BYTES = 1 << 30  # free for a session: its trials' folders, a checkpoint, the cache of programs
SKEW_S = 5.0  # between this machine's clock and that of the disk
EARLIEST = 1_767_225_600  # 2026-01-01, Unix seconds: a clock before it is wrong
KEYS = ("GEMINI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_KEY")
BUSY = 0.5  # of the cores, used by others


class Row(NamedTuple):
    """Something that a loop needs. found: in words. mend: what would do, where it will not; empty if it does.

    hard: whether a loop cannot begin without it.
    """

    name: str
    found: str
    mend: str = ""
    hard: bool = True


def rows(track: Track, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All rows for a track, with the executors' options; a session would lie below the folder."""
    looks: Sequence[Callable[[], Row]] = (
        versions, lambda: places(track, options), others, lambda: text(track), lambda: disk(folder),
        lambda: registry(options.registry), lambda: clock(folder), keys, lambda: ray(options),
        lambda: price(track, options))
    return [look() for look in looks]


def refuse(found: Sequence[Row]) -> None:
    """Raises: UserError with the rows that no loop can begin without."""
    if bad := [row for row in found if row.mend and row.hard]:
        raise UserError("\n".join(f"{row.name}: {row.found}; {row.mend}" for row in bad))


def begin(track: Track, folder: Path) -> data.Corpus:
    """The track's corpus, where nothing speaks against a session in the folder. Raises: as `refuse`."""
    refuse([versions(), disk(folder), clock(folder), text(track)])
    return data.load(track.base_recipe.data)


def versions() -> Row:
    """Python and the packages that results depend on."""
    found = machine.versions()
    told = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {found[name]}" for name in ("jax", "jaxlib", "flax", "optax") if name in found)
    if found.get("jax", "").split(".")[:2] != found.get("jaxlib", "").split(".")[:2]:
        return Row("versions", told, "pip install --upgrade jax jaxlib")
    return Row("versions", told)


def places(track: Track, options: argparse.Namespace) -> Row:
    """The workers that a loop would have here."""
    if options.executor != "local":
        return Row("devices", "a Ray cluster's")
    try:
        offered = executors.offer(options, getattr(options, "workers", None), track.devices)
        track.admit(offered.place.devices)
    except (UserError, Failure) as error:
        said, _, mend = str(error).partition("; ")
        return Row("devices", said, mend or "--platform cpu would do without them")
    return Row("devices", f"{offered.workers} workers, each {offered.place}")


def others() -> Row:
    """Who else uses the devices, or the cores."""
    asked = machine.output(["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"])
    used = [line.strip() for line in asked.splitlines() if line.strip()] + list(_holders())
    if used:
        return Row("others", "; ".join(used[:4]) + (f" and {len(used) - 4} more" if len(used) > 4 else ""),
                   "end them, or share the device with --workers", hard=False)
    cores = machine.cores()
    busy = sum(psutil.cpu_percent(0.2, percpu=True)[core] for core in cores) / 100 / len(cores)
    told = f"{busy:.0%} of {len(cores)} cores in use"
    return Row("others", told, "a quiet machine gives better times: `top` shows who", hard=False) if busy > BUSY \
        else Row("others", told)


def _holders() -> Iterator[str]:
    """Processes that have a TPU's device file open."""
    files = {str(path) for pattern in ("accel[0-9]*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)}
    for process in psutil.process_iter(["pid", "name"]) if files else ():
        try:
            held = {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
        except OSError:
            continue
        if held & files:
            yield f"{process.pid}, {process.info['name']}, a TPU"


def text(track: Track) -> Row:
    """The corpus and its splits, each of which has to hold a batch."""
    wanted = track.base_recipe.data
    try:
        corpus = data.load(wanted)
        sizes = {split: len(corpus.tokens(split)) for split in
                 ("train", track.splits.search, *track.splits.all_protected, track.splits.heldout)}
        for split, n in sizes.items():
            if n <= (least := wanted.batch * wanted.length):
                raise UserError(f"{n:,} tokens {split}; more than {least:,}, a batch, would do")
    except (UserError, Failure, OSError) as error:
        said, _, mend = str(error).partition("; ")
        needs = f"track {track.name} needs {track.needs}" if track.needs else ""
        return Row("data", said, "; ".join(filter(None, (mend, needs))) or "python -m jaxnano.data says what there is")
    return Row("data", f"{corpus.data_hash[:16]}, tokens: " + ", ".join(f"{n:,} {name}" for name, n in sizes.items()))


def disk(folder: Path) -> Row:
    """Room for sessions."""
    at = _there(folder)
    free, told = shutil.disk_usage(at).free, f"{at}: "
    why, mend = _unwritable(at)
    if why:
        return Row("disk", told + why, mend + "research.loop --session DIR on another disk")
    told += f"{free / 2**30:.1f} GiB free" if free >= LEAST_BYTES else f"{free / 2**20:,.0f} MiB free"
    return Row("disk", told) if free >= LEAST_BYTES else Row(
        "disk", told, f"free {LEAST_BYTES >> 30} GiB there, or research.loop --session DIR on another disk")


def registry(told: Path | None) -> Row:
    """Where seals are counted: the user's own registry, or the one that --registry names."""
    path = (told or default_path()).absolute()
    if path.is_file():
        try:
            with Registry(path) as found:
                return Row("registry", f"{path}, {found.name}")
        except (UserError, Failure) as error:
            said, _, mend = str(error).partition("; ")
            return Row("registry", said, mend or "--registry FILE names another")
    at = _there(path.parent)
    why, mend = _unwritable(at)
    if why:
        return Row("registry", f"{at}: {why}, and {path} has to be made", mend + "--registry FILE elsewhere")
    return Row("registry", f"{path} will be made")


def _unwritable(folder: Path) -> tuple[str, str]:
    """Why no file can be made in a folder, and what lets it be, or else; empty if one can. Its rights do not tell: a
    disk may be read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return "", ""
    except PermissionError:
        mine = folder.stat().st_uid == os.getuid()
        return "not yours to write to", f"chmod u+w {folder}, or " if mine else f"sudo chown $USER {folder}, or "
    except OSError as error:
        return (error.strerror or str(error)).lower(), ""


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())


def clock(folder: Path) -> Row:
    """This machine's clock, beside the disk's."""
    now = time.time()
    try:
        with tempfile.TemporaryFile(dir=_there(folder)) as file:
            file.write(b"x")
            file.flush()
            skew = os.fstat(file.fileno()).st_mtime - now
    except OSError:
        skew = 0.0  # the disk's row says it
    told = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now))
    if now < EARLIEST:
        return Row("clock", told, "sudo timedatectl set-ntp true, of a container on its host")
    if abs(skew) > SKEW_S:
        return Row("clock", f"{told}, the disk's is {skew:+.0f} s off", "sudo timedatectl set-ntp true on both hosts",
                   hard=False)
    return Row("clock", told)


def keys() -> Row:
    """Which keys of language models are set, by name."""
    there = [name for name in KEYS if os.environ.get(name)]
    return Row("keys", f"set: {', '.join(there)}" if there else "none set; only the lane llm needs one")


def ray(options: argparse.Namespace) -> Row:
    """The cluster's head, where one is asked for."""
    if options.executor != "ray":
        return Row("ray", "not asked for")
    if importlib.util.find_spec("ray") is None:
        return Row("ray", "not installed", 'pip install "jaxnano[ray]"')
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    try:
        executors.ray.answers(address)
    except (UserError, Failure) as error:
        said, _, mend = str(error).partition("; ")
        return Row("ray", said, mend)
    return Row("ray", f"something answers at {address}" if address and ":" in address else
               address or "a Ray of this machine's own")


def estimate(track: Track, device: str, hours: float, usd: float | None = None) -> dict[str, float]:
    """What runs of a track take, compiling not counted; what share of a device's peak a small model reaches is a guess.

    Args: device: a name in jaxnano.device, or cpu for one core. hours: of one place. usd: of a device's hour.
    """
    cost, grid = track.base_cost, track.grid
    rates = {"cpu": CORE_FLOPS} | {name: PEAK_SHARE * peak for name, peak in PEAK_FLOPS}
    one = next((rate for name, rate in rates.items() if name.lower() == device.lower()), None)
    if one is None:
        raise UserError(f"--estimate: {device}: no such device; {', '.join(rates)} would do")
    rate = track.devices * one
    flops = track.full_steps * cost.flops_per_step
    run_hours = (track.seconds(1.0, cost.flops_per_step / rate) or flops / rate) / 3600
    found = {
        "parameters": cost.parameters, "run_tokens": round(track.full_steps * cost.tokens_per_step),
        "run_flops": flops, "flops_per_s": rate, "run_minutes": 60 * run_hours,
        "runs": int(hours / run_hours), "qualify_hours": (len(grid.values) + 2) * grid.seeds * run_hours,
        "proof_hours": 2 * track.significance.n * run_hours}
    return found if usd is None else found | {"usd": usd * track.devices * hours}


def price(track: Track, options: argparse.Namespace) -> Row:
    """How long a run of the track takes here, by its FLOPs."""
    try:
        offered = executors.offer(options, getattr(options, "workers", None), track.devices) \
            if options.executor == "local" else None
    except (UserError, Failure):
        offered = None
    if offered is None:
        return Row("time", "not known here; research.qualify TRACK --estimate DEVICE would tell")
    model = "cpu" if offered.place.kind in ("cpu", "virtual") else next(
        (name for name, _ in PEAK_FLOPS if name.lower() in offered.place.model.lower()), "")
    if not model:
        return Row("time", f"how fast a {offered.place.model} is, is not known here")
    found = estimate(track, model, 1.0)
    run_s, at_once = 60 * found["run_minutes"], offered.workers
    least, most = (duration(runs * run_s / at_once) for runs in (12, 2 * track.significance.n))
    return Row("time", f"about {duration(run_s)} a run (a guess, by FLOPs), {at_once} at a time; a proof takes 12 to "
                       f"{2 * track.significance.n} runs, {least} to {most}")
