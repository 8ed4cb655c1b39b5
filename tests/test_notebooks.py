"""The notebooks run from top to bottom: with fewer rows, and as they are (slow)."""

import pathlib

import nbclient
import nbformat
import pytest

# Numbers of rows, and what they are in the integration tier.
FEWER = {
    "600_000": "60_000",
    "200_000": "40_000",
    "120_000": "30_000",
    "100_000": "25_000",
}
NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def with_fewer_rows(notebook):
    for cell in notebook.cells:
        for number, fewer in FEWER.items():
            cell.source = cell.source.replace(number, fewer)
    return notebook


@pytest.mark.parametrize(
    "fewer_rows",
    [
        pytest.param(True, marks=pytest.mark.integration, id="fewer_rows"),
        pytest.param(False, marks=pytest.mark.slow, id="as_it_is"),
    ],
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, fewer_rows, tmp_path):
    stored = nbformat.read(path, as_version=4)
    # Stored without outputs: pictures and figures would age in the repository.
    assert not any(cell.get("outputs") for cell in stored.cells)
    notebook = with_fewer_rows(stored) if fewer_rows else stored
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
