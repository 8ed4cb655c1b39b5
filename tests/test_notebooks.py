"""The notebooks run from top to bottom, and give outputs as those that are stored.

They run with fewer rows, and as they are (slow). `helpers/notebooks.py` stores them.
"""

import collections
import copy
import re

import nbformat
import pytest
from helpers import notebooks

# Numbers of rows, and what they are in the integration tier.
FEWER = {
    "600_000": "60_000",
    "200_000": "40_000",
    "100_000": "25_000",
}
PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000
# Places of this machine, warnings, log lines, progress bars: no reader wants them.
NOISE = r"/tmp|/home|/root|site-packages|Warning|WARNING|[IWEF]\d{4} \d\d:|\x08|━"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """How many outputs of each kind a cell has."""
    return collections.Counter(
        output.name
        if output.output_type == "stream"
        else (output.output_type, *sorted(output.get("data", {})))
        for output in cell.outputs
    )


def with_fewer_rows(notebook):
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        for number, fewer in FEWER.items():
            cell.source = cell.source.replace(number, fewer)
    return notebook


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_outputs_are_for_readers(path):
    assert path.stat().st_size < MAX_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        texts = [output.get("text", "")]
        texts += [
            text
            for kind, text in output.get("data", {}).items()
            if kind.startswith("text")
        ]
        for text in texts:
            assert not re.search(NOISE, text), text


@pytest.mark.parametrize(
    "fewer_rows",
    [
        pytest.param(True, marks=pytest.mark.integration, id="fewer_rows"),
        pytest.param(False, marks=pytest.mark.slow, id="as_it_is"),
    ],
)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_gives_outputs_as_those_that_are_stored(path, fewer_rows, tmp_path):
    stored = nbformat.read(path, as_version=4)
    notebook = with_fewer_rows(stored) if fewer_rows else copy.deepcopy(stored)
    for cell in code_cells(notebook):
        cell.outputs = []
    notebooks.execute(notebook, tmp_path)
    for cell, executed in zip(code_cells(stored), code_cells(notebook), strict=True):
        assert kinds(executed) == kinds(cell), cell.source


def test_the_first_cell_installs_and_is_the_same_in_all():
    first = {code_cells(nbformat.read(p, as_version=4))[0].source for p in PATHS}
    assert len(first) == 1
    assert "%pip install" in first.pop()
