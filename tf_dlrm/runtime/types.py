"""Types that many signatures name. Needs the standard library alone."""

import os

PathLike = str | os.PathLike[str]
Logs = dict[str, float] | None  # what Keras gives to callbacks
Shape = tuple[int | None, ...]
