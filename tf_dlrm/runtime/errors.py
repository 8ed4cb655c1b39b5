"""`UserError`, which commands report as one line instead of a traceback.

This module imports nothing, so that commands can use it without TensorFlow.
"""


class UserError(ValueError):
    """A mistake of the user, in an option, a file, or the content of a file.

    The message names the mistake, the received value and the fix. An exception of any
    other class, except `OSError`, is a bug, and `tf-dlrm` shows its traceback.

    Example:

    >>> from tf_dlrm.runtime import UserError
    >>> issubclass(UserError, ValueError)
    True
    """
