"""Types that many signatures share. Needs the standard library only."""

import os

PathLike = str | os.PathLike[str]
Logs = dict[str, float] | None  # what Keras gives to callbacks
Shape = tuple[int | None, ...]
