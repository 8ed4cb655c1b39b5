"""Finished shards of an earlier run, which are not written again."""

import dataclasses
import json
import threading

from pipelines.records.batch import Batch, cut, id_ends
from pipelines.records.layout import Shard
from pipelines.runtime import disk
from pipelines.whole_files import write_text


class Written:
    """The finished shards, recorded in a file.

    Args:
        path: JSON file that records them.
    """

    def __init__(self, path):
        self._path, self._shards, self._lock = path, [], threading.Lock()
        if path.is_file():
            self._shards = [Shard(**shard) for shard in disk.read_json(path, list)]

    def of(self, split: str) -> list[Shard]:
        """Return the finished shards of a split."""
        return [shard for shard in self._shards if shard.split == split]

    def add(self, shard: Shard) -> None:
        """Record a finished shard."""
        with self._lock:  # splits are written in parallel
            self._shards.append(shard)
            content = [dataclasses.asdict(shard) for shard in self._shards]
            write_text(self._path, json.dumps(content))


def skip(batch: Batch, num_rows: int) -> tuple[Batch, int]:
    """Drop the first rows; return the rest and how many rows are still to drop."""
    if not num_rows:
        return batch, 0
    skipped = min(num_rows, len(batch.labels))
    rest = cut(batch, id_ends(batch), skipped, len(batch.labels))
    return rest, num_rows - skipped
