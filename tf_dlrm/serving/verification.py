"""Verifies an export outside of the Python that made it."""

import json
import os
import pathlib
import subprocess
import sys

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.serving import c_library
from tf_dlrm.serving.versions import existing_versions


def verify_saved_model(path, library_folder=None) -> dict:
    """Loads an export with TensorFlow's C library and replays its recorded requests.

    In a process of its own, which never imports TensorFlow's Python: what runs is what
    a server runs. The answers must be those that the model gave when it was exported.

    Args:
        path: A version's directory, or the directory of versions, for the newest.
        library_folder: Folder of another TensorFlow's `libtensorflow_cc.so.2`, to see
            whether a server that lags behind can run the model; `None`: the installed
            one.

    Returns:
        `library` (its version), `seconds_to_load`, and `largest_difference` of a
        probability by signature.

    Raises:
        ValueError: If it does not load, a request fails, or an answer is another.

    Example:

    ```python
    path = tf_dlrm.export_saved_model(model, "saved_models/ctr")
    tf_dlrm.serving.verify_saved_model(path)["largest_difference"]
    ```
    """
    path = pathlib.Path(path)
    if not (path / "saved_model.pb").is_file():
        versions = existing_versions(path)
        if not versions:
            raise UserError(f"{path} is no SavedModel, and holds no version of one.")
        path = path / str(versions[-1])
    command = [sys.executable, c_library.__file__, str(path)]
    if library_folder is not None:
        command.append(str(library_folder))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{path}: the process ended with code {done.returncode}: {reason}"
        )
    found = json.loads(lines[-1])
    if "failed" in found:
        raise UserError(f"{path}: {found['failed']}")
    return found
