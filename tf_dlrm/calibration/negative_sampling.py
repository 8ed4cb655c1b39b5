"""Correction of click probabilities for training on a sample of the negatives."""

from typing import Any

from tf_dlrm.runtime.errors import UserError


def check_rate(rate: float) -> float:
    """Return a valid `negative_sampling_rate` as a float.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    if not 0 < rate <= 1:
        raise UserError(
            "`negative_sampling_rate` must be above 0 and at most 1: the share of rows "
            "without a click in the training data. Received: "
            f"negative_sampling_rate={rate!r}"
        )
    return float(rate)


def recalibrate(probabilities: Any, negative_sampling_rate: float) -> Any:
    """Correct click probabilities for negatives that were sampled at rate w.

    The result is `p / (p + (1 - p) / w)`: 0 stays 0, 1 stays 1, and log w is added to
    the logit. With w = 1 the probabilities are returned unchanged.

    Args:
        probabilities: A tensor or array of probabilities p.
        negative_sampling_rate: Share w of the rows without a click that were kept.

    Returns:
        The corrected probabilities, in the shape and dtype of the input.

    Example:

    >>> from tf_dlrm import calibration
    >>> calibration.recalibrate(0.5, 0.25)
    0.2

    Reference:
        He et al. 2014, Practical lessons from predicting clicks on ads at Facebook,
        section 6.3.
    """
    w = negative_sampling_rate
    if w == 1:
        return probabilities
    return w * probabilities / (w * probabilities + (1.0 - probabilities))
