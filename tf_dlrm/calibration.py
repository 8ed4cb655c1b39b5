"""Correct probabilities for a model that was trained on a sample of the negatives."""

from typing import Any

from tf_dlrm.runtime.errors import UserError


def check_rate(rate: float) -> float:
    """Return a valid `negative_sampling_rate` as a float.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    if not 0 < rate <= 1:
        raise UserError(
            "`negative_sampling_rate` must be above 0 and at most 1, the share of rows "
            "without a click that is trained on. Received: "
            f"negative_sampling_rate={rate!r}"
        )
    return float(rate)


def recalibrate(probabilities: Any, negative_sampling_rate: float) -> Any:
    """Correct click probabilities for negatives that were sampled at a rate w.

    `p / (p + (1 - p) / w)`, which takes 0 to 0, 1 to 1, and adds log w to the logit.
    At w = 1 the probabilities are returned unchanged.

    Args:
        probabilities: A tensor or array.
        negative_sampling_rate: Share w of the rows without a click that was kept.

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
