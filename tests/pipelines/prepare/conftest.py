"""Small blocks for the tests of `prepare`."""

import os

import pytest

from pipelines.formats import scanning
from pipelines.prepare import segments


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Many blocks and segments, also of few rows; and no waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(scanning, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(segments, "BLOCKS_PER_SEGMENT", 3)
