"""`UserError`, which a command reports as one line instead of a traceback.

Nothing is imported here, so that commands have it without TensorFlow.
"""


class UserError(ValueError):
    """A mistake of the user: an option, a file, or something that a file contains.

    The message names the mistake, what was received and how to mend it. An exception
    of any other class, but for `OSError`, is a bug: `tf-dlrm` shows its traceback.

    Example:

    >>> from tf_dlrm.runtime import UserError
    >>> issubclass(UserError, ValueError)
    True
    """
