"""Raise the original errors of an input pipeline instead of TensorFlow's."""

import contextlib
import re
import warnings
from collections.abc import Iterator

import tensorflow as tf

from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError

_KINDS = ("UserError", "FileNotFoundError", "BadRowsError", "WriteError")
_WRONG_ID = re.compile("table .* received id")


@contextlib.contextmanager
def clear_errors(*quarantines: Quarantine) -> Iterator[None]:
    """Raise the original errors of reading.

    An exception in an input pipeline reaches `fit` as a TensorFlow error with a
    traceback in its text. The quarantines know if bad rows caused it.

    Args:
        *quarantines: The quarantines of the datasets that are read inside.
    """
    try:
        with warnings.catch_warnings():
            # Keras warns of this at the end of every dataset of unknown length.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            # Commands print their number in a separate line.
            warnings.filterwarnings("ignore", ".* batches had a loss or gradients")
            yield
    except tf.errors.OpError as error:
        for quarantine in quarantines:
            quarantine.check()
        for line in (error.message or "").splitlines():
            kind, _, message = line.partition(": ")
            if kind.endswith(_KINDS):
                raise UserError(message) from None
        if _WRONG_ID.search(error.message or ""):  # caused by a damaged file of records
            raise UserError(shorten(error)) from error
        raise


def shorten(error: tf.errors.OpError) -> str:
    """Return the first line of an error, without internal details of TensorFlow."""
    text = (error.message or str(error)).splitlines()[0]
    text = re.sub(r"^\{\{.*?\}\}\s*", "", text)
    return re.sub(r"\s*\[Op:[^\]]*\].*$", "", text)
