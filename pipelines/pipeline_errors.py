"""Errors of an input pipeline, raised as themselves and not as TensorFlow's."""

import contextlib
import re
import warnings
from collections.abc import Iterator

import tensorflow as tf

from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError, disk

_KINDS = ("UserError", "FileNotFoundError", "BadRowsError", "WriteError")
_WRONG_ID = re.compile("table .* received id")


@contextlib.contextmanager
def clear_errors(*quarantines: Quarantine) -> Iterator[None]:
    """Raise errors of reading as themselves.

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
                raise UserError(message) from None
        if _WRONG_ID.search(error.message or ""):  # of a damaged file of records
            raise UserError(shorten(error)) from error
        raise


def shorten(error: tf.errors.OpError) -> str:
    """Return the first line of an error, without what only its authors understand."""
    text = (error.message or str(error)).splitlines()[0]
    text = re.sub(r"^\{\{.*?\}\}\s*", "", text)
    return re.sub(r"\s*\[Op:[^\]]*\].*$", "", text)


@contextlib.contextmanager
def explaining_logs(log_dir) -> Iterator[None]:
    """Raise a failure to write for TensorBoard, wherever it surfaces, as `WriteError`.

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
