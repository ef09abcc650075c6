"""The notebooks do what they show: each runs in a fresh kernel, and nothing of a machine is left in its outputs."""

import getpass
import re

import nbformat
import pytest

from notebooks import NOTEBOOKS, executed, shown

MOST_BYTES = 200_000
MACHINE = re.compile(rf"/(tmp|home|root|work|Users|var|opt|usr)\b|Traceback|\b{re.escape(getpass.getuser())}\b")


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(notebook):
    """Outputs are there, none is an error or a warning, and none names a place, a person or an object of a machine."""
    found = outputs(notebook)
    assert found and {output.output_type for output in found} <= {"stream", "display_data", "execute_result"}
    assert not [output.text for output in found if output.get("name") == "stderr"]
    assert not MACHINE.findall(shown(notebook))


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["ledger", "quickstart", "review"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    check(executed(path, tmp_path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    assert path.stat().st_size < MOST_BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in notebook.cells)
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
