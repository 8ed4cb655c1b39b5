"""Event time: the step before which ids have expired, from the times of steps."""

import numpy as np

from tf_dlrm.embedding.growing.growing_tables import GrowingTables
from tf_dlrm.runtime.errors import UserError

_MOST_MOMENTS = 1024


def advance(growing: GrowingTables, seconds: int) -> bool:
    """Set the event time; return whether it moved.

    A moment `(time, step)` says that all steps after `step` were at `time` or later,
    and those up to it before. Ids last seen up to the step of the last moment that is
    `expire_after_seconds` ago have expired.

    Raises:
        ValueError: If no table has `expire_after_seconds`, or the time is not an
            integer.
    """
    limits = [rules.expire_after_seconds for rules in growing.rules]
    if not any(limits):
        raise UserError(
            "No table has `expire_after_seconds`, so there is no event time to set."
        )
    if not hasattr(seconds, "__index__") or isinstance(seconds, bool):
        raise UserError(f"`seconds` must be an integer. Received: {seconds!r}")
    moments = growing.moments.numpy()
    if len(moments) and int(seconds) <= moments[-1, 0]:
        return False
    now = np.array([[int(seconds), int(growing.clock.numpy())]], np.int64)
    moments = np.concatenate([moments, now])
    if len(moments) > _MOST_MOMENTS:  # fewer of the older half
        half = _MOST_MOMENTS // 2
        moments = np.concatenate([moments[:half:2], moments[half:]])
    growing.moments.assign(moments)
    before = growing.expired_before.numpy()
    for number, limit in enumerate(limits):
        if limit is None:
            continue
        last = np.searchsorted(moments[:, 0], int(seconds) - limit, side="right")
        if last:
            step = int(moments[last - 1, 1]) + 1
            before[number] = max(int(before[number]), step)
    growing.expired_before.assign(before)
    return True
