"""`Packing`: pieces of tables on devices during planning.

Three operations balance the devices: greedy placement, exchanges, and cuts of rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tf_dlrm.sharding.planning.loads import TableLoad

Numbers = float | np.ndarray

FINE = 1e-3  # smallest relative improvement of the score by an exchange
MAX_EXCHANGES = 300
MAX_TRIED = 8  # number of devices to try, those with the highest scores
MAX_TRIED_PIECES = 64  # number of pieces of a device to try, the heaviest ones
HARMLESS = 1.1  # a cut may raise lookups to this multiple of the mean


class Packing:
    """Pieces `(rows, columns)` of tables on devices, with their memory and lookups.

    The score of a device is the larger of its memory and its lookups, each divided by
    the mean over all devices. Planning minimizes the highest score.

    Args:
        loads: The tables.
        num_devices: Number of devices.
        means: Mean bytes of memory, and of lookups per example, of a device at the end.
        limit: Maximum number of bytes on a device.
        by_memory: Whether to ignore lookups.
    """

    def __init__(
        self,
        loads: Sequence[TableLoad],
        num_devices: int,
        means: tuple[float, float],
        limit: float = np.inf,
        by_memory: bool = False,
    ) -> None:
        self.loads, self.num_devices, self.limit = loads, num_devices, limit
        self.memory, self.lookups = np.zeros(num_devices), np.zeros(num_devices)
        self.mean_memory = max(means[0], 1.0)
        self.mean_lookups = np.inf if by_memory else max(means[1], 1e-9)
        # Table number to (rows, width), for each device.
        self.pieces: list[dict[int, tuple[int, int]]] = [{} for _ in range(num_devices)]
        self.present = np.zeros((num_devices, len(loads) + 1), bool)

    def weigh(self, table: int, rows: int, width: int) -> tuple[float, float]:
        """Return the bytes of memory, and of lookups per example, of a piece."""
        load = self.loads[table]
        return load.memory_bytes(rows, width), load.lookup_bytes(rows, width)

    def add(self, table: int, rows: int, width: int, device: int) -> None:
        """Add rows of a table to a device, to those that it already has."""
        memory, lookups = self.weigh(table, rows, width)
        self.memory[device] += memory
        self.lookups[device] += lookups
        before = self.pieces[device].get(table, (0, 0))[0]
        self.pieces[device][table] = (before + rows, width)
        self.present[device, table] = True

    def add_everywhere(self, table: int) -> None:
        """Add a whole table to each device, which looks up its own part of a batch."""
        load = self.loads[table]
        memory, lookups = self.weigh(table, load.num_rows, load.embedding_dim)
        self.memory += memory
        self.lookups += lookups / self.num_devices
        for pieces in self.pieces:
            pieces[table] = (load.num_rows, load.embedding_dim)
        self.present[:, table] = True

    def add_rows_everywhere(self, table: int, sizes: list[int]) -> None:
        """Add rows of a table to each device, larger parts to emptier devices."""
        width = self.loads[table].embedding_dim
        emptiest_first = np.argsort(self.memory, kind="stable").tolist()
        for device, rows in zip(emptiest_first, sorted(sizes, reverse=True)):
            self.add(table, rows, width, device)

    def remove(self, table: int, rows: int, device: int) -> None:
        """Remove rows of a table from a device."""
        before, width = self.pieces[device][table]
        memory, lookups = self.weigh(table, rows, width)
        self.memory[device] -= memory
        self.lookups[device] -= lookups
        self.pieces[device][table] = (before - rows, width)
        if before == rows:
            del self.pieces[device][table]
            self.present[device, table] = False

    def scores(self, memory: Numbers, lookups: Numbers) -> np.ndarray:
        """Return the scores of devices with this memory and these lookups."""
        return np.maximum(memory / self.mean_memory, lookups / self.mean_lookups)

    def place(self, table: int, rows: int, width: int) -> None:
        """Add a piece to the device whose score is then lowest.

        Devices that have no piece of the table yet, and enough memory, come first.
        """
        own_memory, own_lookups = self.weigh(table, rows, width)
        memory, lookups = self.memory + own_memory, self.lookups + own_lookups
        total = memory / self.mean_memory + lookups / self.mean_lookups
        full = memory > self.limit
        has_piece = self.present[:, table]
        order = np.lexsort((total, self.scores(memory, lookups), full, has_piece))
        self.add(table, rows, width, int(order[0]))

    def place_all(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Place pieces `(table, rows, width)`, heaviest first."""

        def weight(piece: tuple[int, int, int]) -> tuple[Any, int]:
            memory, lookups = self.weigh(*piece)
            return -self.scores(memory, lookups), piece[0]

        for piece in sorted(pieces, key=weight):
            self.place(*piece)

    # Exchanges

    def exchange(self, movable: set[int], cap: float) -> None:
        """Move or swap pieces while that lowers the higher score of two devices.

        Args:
            movable: Numbers of the tables whose pieces may move.
            cap: Maximum number of bytes on a device after an exchange.
        """
        pieces = [(t, d) for d, own in enumerate(self.pieces) for t in own]
        pieces = [(t, d) for t, d in pieces if t in movable]
        pairs = [self.weigh(t, *self.pieces[d][t]) for t, d in pieces]
        # A move is a swap with nothing: add an empty piece, of table -1, per device.
        pieces += [(-1, device) for device in range(self.num_devices)]
        pairs += [(0.0, 0.0)] * self.num_devices
        tables, devices = np.array(pieces).T
        weights = np.array(pairs)
        for _ in range(MAX_EXCHANGES):
            scores = self.scores(self.memory, self.lookups)
            if scores.max() <= 1 + FINE:
                return
            for device in np.argsort(-scores, kind="stable")[:MAX_TRIED]:
                pair = self._better(int(device), tables, devices, weights, cap)
                if pair:
                    break
            else:
                return
            i, j = pair
            source, target = int(devices[i]), int(devices[j])
            self._move(int(tables[i]), source, target)
            devices[i] = target
            if tables[j] >= 0:
                self._move(int(tables[j]), target, source)
                devices[j] = source

    def _better(
        self,
        device: int,
        tables: np.ndarray,
        devices: np.ndarray,
        weights: np.ndarray,
        cap: float,
    ) -> tuple[int, int] | None:
        """Return the best swap of a piece on `device` with one elsewhere, or `None`."""
        mine = np.flatnonzero((devices == device) & (tables >= 0))
        others = np.flatnonzero(devices != device)
        if not len(mine) or not len(others):
            return None
        if len(mine) > MAX_TRIED_PIECES:
            own = self.scores(*weights[mine].T)
            mine = mine[np.argsort(-own, kind="stable")[:MAX_TRIED_PIECES]]
        gain = weights[others][None] - weights[mine][:, None]  # (mine, others, 2)
        there = devices[others]
        here_memory = self.memory[device] + gain[..., 0]
        there_memory = self.memory[there] - gain[..., 0]
        score = np.maximum(
            self.scores(here_memory, self.lookups[device] + gain[..., 1]),
            self.scores(there_memory, self.lookups[there] - gain[..., 1]),
        )
        twice = self.present[there][:, tables[mine]].T
        twice = twice | self.present[device][tables[others]][None]
        over = (here_memory > max(cap, self.memory[device])) | (there_memory > cap)
        score[twice | over] = np.inf
        i, j = np.unravel_index(np.argmin(score), score.shape)
        now = self.scores(self.memory[device], self.lookups[device])
        better = score[i, j] < now * (1 - FINE)
        return (mine[i], others[j]) if better else None

    def _move(self, table: int, source: int, target: int) -> None:
        rows, width = self.pieces[source][table]
        self.remove(table, rows, source)
        self.add(table, rows, width, target)

    # Cuts

    def level(self, divisible: set[int], target: float) -> None:
        """Move rows between devices until none holds more than `target` bytes.

        Each cut brings the emptiest or the fullest device to the mean, so that, up to
        whole rows, N - 1 cuts are enough.

        Args:
            divisible: Numbers of the tables that may be split by rows.
            target: Number of bytes, at least the mean.
        """
        mean = self.memory.mean()
        stuck = np.zeros(self.num_devices, bool)
        for _ in range(4 * self.num_devices):
            source = int(np.argmax(np.where(stuck, -np.inf, self.memory)))
            if self.memory[source] <= target or stuck.all():
                return
            stuck[source] = not self._cut(source, divisible, mean)

    def _cut(self, source: int, divisible: set[int], mean: float) -> bool:
        target = int(np.lexsort((self.lookups, self.memory))[0])
        amount = min(self.memory[source] - mean, mean - self.memory[target])
        candidates = [t for t in self.pieces[source] if t in divisible]
        if not candidates:
            return False
        allowed = max(HARMLESS * self.mean_lookups, self.lookups[source])

        def preference(table: int) -> tuple[bool, bool, bool, bool, float, int]:
            memory, lookups = self.weigh(table, *self.pieces[source][table])
            moved = lookups * min(amount / memory, 1)
            return (
                self.lookups[target] + moved <= allowed,
                memory >= amount,
                bool(self.present[target, table]),  # no new shard
                self.present[:, table].sum() > 1,  # no newly split table
                memory,
                -table,
            )

        table = max(candidates, key=preference)
        rows, width = self.pieces[source][table]
        row_bytes = self.loads[table].row_bytes(width)
        cut = min(rows, int(amount // row_bytes))
        # Move a single row if the fuller of the two devices is then less full.
        if cut == 0 and self.memory[target] + row_bytes < self.memory[source]:
            cut = 1
        if cut == 0:
            return False
        self.remove(table, cut, source)
        self.add(table, cut, width, target)
        return True
