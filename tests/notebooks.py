"""Runs the notebooks in a fresh kernel of this interpreter, in a folder of their own; and writes their outputs anew.

    python tests/notebooks.py                 all of notebooks/, in place
    python tests/notebooks.py ledger review   these
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # jupyter_core warns of the old places otherwise

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL_S = 300
SLOW_DISK = "WARNING:absl:Waiting for previous save"  # Orbax says so where writing a checkpoint took a second


def executed(path, folder):
    """The notebook with the outputs of a run in `folder`, which gets a copy of what lies beside it.

    Args: folder: empty. Raises: nbclient.exceptions.CellExecutionError where a cell fails.
    """
    work = folder / "notebooks"
    shutil.copytree(path.parent, work, ignore=shutil.ignore_patterns("runs"))
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "SESSION")}
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython"), "COLUMNS": "120"}
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=LONGEST_CELL_S, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(work)}},
        config=Config({"KernelSpecManager": {"kernel_dirs": []}}),  # this interpreter's kernel, whatever is installed
        extra_arguments=["--IPKernelApp.log_level=40"])  # it warns that loopback is not encrypted
    return tidy(client.execute(env=environment))


def tidy(notebook):
    """Without what differs from machine to machine or says nothing: kernel versions, cell metadata, a slow disk."""
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not o.get("text", "").startswith(SLOW_DISK)]
        for output in cell.get("outputs", ()):
            if "data" in output and "image/svg+xml" in output["data"]:
                output["data"].pop("text/plain", None)  # the address of an object
    return notebook


def shown(notebook):
    """All that a reader of the outputs sees, as text."""
    return "\n".join(nbformat.v4.writes(nbformat.v4.new_notebook(cells=[cell]))
                     for cell in notebook.cells if cell.cell_type == "code")


def main(names):
    """Run those asked for, or all, and write them back with their outputs."""
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(executed(path, Path(folder)), path)


if __name__ == "__main__":
    main(sys.argv[1:])
