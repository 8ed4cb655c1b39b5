"""Endless training on a folder that grows: each new file once, in order."""

from pipelines.following.growing_folder import Arrivals, GrowingFolder
from pipelines.following.job import follow

__all__ = ["Arrivals", "GrowingFolder", "follow"]
