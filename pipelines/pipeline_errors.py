"""What went wrong in an input pipeline, raised as itself."""

import contextlib
import re
import warnings
from collections.abc import Iterator

import tensorflow as tf

from pipelines.quarantine import Quarantine
from pipelines.whole_files import disk

_KINDS = ("ValueError", "FileNotFoundError", "BadRowsError", "WriteError")


@contextlib.contextmanager
def clear_errors(*quarantines: Quarantine) -> Iterator[None]:
    """Raises errors of reading as themselves.

    An exception in an input pipeline reaches `fit` as a TensorFlow error with a
    traceback in its text. The quarantines know whether bad rows were behind it.

    Args:
        *quarantines: Those of the data sets that are read inside.
    """
    try:
        with warnings.catch_warnings():
            # Keras says so at the end of every dataset of unknown length.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            # Commands count them in a line of their own.
            warnings.filterwarnings("ignore", ".* batches had a loss or gradients")
            yield
    except tf.errors.OpError as error:
        for quarantine in quarantines:
            quarantine.check()
        for line in (error.message or "").splitlines():
            kind, _, message = line.partition(": ")
            if kind.endswith(_KINDS):
                raise ValueError(message) from None
        raise


@contextlib.contextmanager
def explaining_logs(log_dir) -> Iterator[None]:
    """Raises failures of writing for TensorBoard, wherever they come to light, as one.

    Args:
        log_dir: The folder of the logs.
    """
    try:
        yield
    except tf.errors.OpError as error:
        reason = disk.find_reason(error)
        if reason is None or not re.search("Summary|tfevents", str(error)):
            raise
        problem = f"{log_dir}: logs for TensorBoard cannot be written: {reason[1]}."
        raise disk.WriteError(reason[0], problem, "", "start again") from error
