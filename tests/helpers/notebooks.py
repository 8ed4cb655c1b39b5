"""Execute the notebooks: for the tests, and to store them with their outputs.

`python tests/helpers/notebooks.py 01_quickstart` executes one (without a name: all) and
stores its outputs. Look at the pictures before you commit them.
"""

import pathlib
import sys
import tempfile

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"


def execute(notebook, folder):
    """Run all cells in a folder; outputs are those of the run, without its times."""
    # Streams in one piece: how they are cut depends on the time of each flush.
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        # What TensorFlow's C++ logs about the machine is no output of a cell.
        extra_arguments=["--IPKernelApp.capture_fd_output=False"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return notebook


def store(path):
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, folder)
    notebook.metadata = metadata  # the kernel adds the version of its Python
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        store(FOLDER / f"{name}.ipynb")
        print(name)
