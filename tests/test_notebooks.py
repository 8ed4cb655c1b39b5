"""The notebooks run from top to bottom, as they are."""

import pathlib

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.integration

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # Stored without outputs: pictures and figures would age in the repository.
    stored = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in stored.cells)
