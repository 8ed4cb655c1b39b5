"""`GrowingTableLogger`: how full growing tables are, and what happens in them."""

from typing import Any

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime.types import Logs


class GrowingTableLogger(Watcher):
    """Write how full each growing table is, and what happened in it in each epoch.

    After each epoch, the entries are, for each table:

    - `growing_load/<table>`: share of the slots that have an id;
    - `growing_claims`, `growing_evictions`, `growing_not_admitted`: numbers of the
      epoch, see `Occupancy`;
    - `growing_fallback_share`: share of the epoch's lookups without a row of their own;
    - `growing_probes`: mean number of slots up to that of an id;
    - `growing_recent`: share of the ids that one of the last 1,000 steps looked up.

    The callback reads the slots, which takes about a second for 100 million of them.
    Models without growing tables write nothing.

    Args:
        log_dir: Folder of the run's logs.
    """

    def on_train_begin(self, logs: Logs = None) -> None:
        embedding: Any = self.model.embedding
        tables = self.model.spec.tables
        self._names = [table.name for table in tables if table.growing is not None]
        self._before = {name: embedding.occupancy(name) for name in self._names}

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        values: dict[str, float] = {}
        for name in self._names:
            before, now = self._before[name], self.model.embedding.occupancy(name)
            self._before[name] = now
            values[f"growing_load/{name}"] = now.load
            for count in ("claims", "evictions", "not_admitted"):
                change = getattr(now, count) - getattr(before, count)
                values[f"growing_{count}/{name}"] = change
            fallbacks = now.fallbacks - before.fallbacks
            lookups = max(1, now.lookups - before.lookups)
            values[f"growing_fallback_share/{name}"] = fallbacks / lookups
            values[f"growing_probes/{name}"] = now.mean_probes
            recent = (share for limit, share in now.ages.items() if limit <= 1000)
            values[f"growing_recent/{name}"] = sum(recent)
        self._write(TRAIN, values)
