"""What went wrong in an input pipeline, raised as itself."""

import contextlib
import warnings
from collections.abc import Iterator

import tensorflow as tf

from pipelines.quarantine import Quarantine
from pipelines.whole_files import disk

_KINDS = ("ValueError", "FileNotFoundError", "BadRowsError", "WriteError")


@contextlib.contextmanager
def clear_errors(*quarantines: Quarantine, log_dir=None) -> Iterator[None]:
    """Raises errors of reading as themselves.

    An exception in an input pipeline reaches `fit` as a TensorFlow error with a
    traceback in its text. The quarantines know whether bad rows were behind it.

    Args:
        *quarantines: Those of the data sets that are read inside.
        log_dir: Where logs are written inside.
    """
    try:
        with warnings.catch_warnings():
            # Keras says so at the end of every dataset of unknown length.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            # Commands count them in a line of their own.
            warnings.filterwarnings("ignore", ".* batches had a loss or gradients")
            yield
    except tf.errors.OpError as error:
        reason = disk.find_reason(error)
        if reason is not None and "SummaryWriter" in str(error):
            what = (
                f"{log_dir}: the logs for TensorBoard cannot be written: {reason[1]}."
            )
            raise disk.WriteError(reason[0], what, "", "start again") from None
        for quarantine in quarantines:
            quarantine.check()
        for line in (error.message or "").splitlines():
            kind, _, message = line.partition(": ")
            if kind.endswith(_KINDS):
                raise ValueError(message) from None
        raise
