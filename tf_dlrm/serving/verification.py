"""Verification of an export without TensorFlow's Python code."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving import c_library
from tf_dlrm.serving.versions import existing_versions


def verify_saved_model(
    path: PathLike, library_folder: PathLike | None = None
) -> dict[str, Any]:
    """Load an export with TensorFlow's C library and replay its recorded requests.

    This happens in a separate process that does not import TensorFlow's Python code,
    like a server. The answers must equal those of the model when it was exported.

    Args:
        path: Directory of a version, or of all versions to verify the newest.
        library_folder: Folder of the `libtensorflow_cc.so.2` of another TensorFlow, to
            check whether an older server can run the model. Default: that of the
            installed TensorFlow.

    Returns:
        `library` (its version), `seconds_to_load`, and `largest_difference` of a
        probability by signature.

    Raises:
        ValueError: If the export cannot be loaded, a request fails, or an answer
            differs.

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
            raise UserError(
                f"{path} is not a SavedModel and contains no versions of one."
            )
        path = path / str(versions[-1])
    command = [sys.executable, c_library.__file__, str(path)]
    if library_folder is not None:
        command.append(str(library_folder))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if not lines:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{path}: the process ended with code {process.returncode}: {reason}"
        )
    report: dict[str, Any] = json.loads(lines[-1])
    if "failed" in report:
        raise UserError(f"{path}: {report['failed']}")
    return report
