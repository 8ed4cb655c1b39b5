"""Predicted costs of table placements, and charts of plans."""

from pipelines.placement.chart import draw_plan, draw_scaling
from pipelines.placement.costs import LINKS, Link, format_scaling, scaling, step_time

__all__ = [
    "LINKS",
    "Link",
    "draw_plan",
    "draw_scaling",
    "format_scaling",
    "scaling",
    "step_time",
]
