"""Bad rows: count them, write them to a file, and raise an error if there are many."""

import collections
import os
import re
import threading
from collections.abc import Sequence

from pipelines.formats.diagnosis import explain
from pipelines.runtime import UserError, disk
from pipelines.schema import Schema

HEADER = "path\tline\treason\tnum_bytes\trow\n"
MAX_ROW_BYTES = 1024
MIN_ROWS_TO_JUDGE = 10_000
_NUM_PLACES = 5
_HEADER_LINE = re.compile(r":1: the label must be 0 or 1, found '[A-Za-z_]")
_OTHER_FILE = "Most rows are bad: the file may have another layout."


class BadRowsError(UserError):
    """Too many rows of a dataset are bad.

    Attributes:
        one_line: The message without the list of places.
    """

    one_line = ""


class Quarantine:
    r"""Count bad rows, which are left out of batches, and write them to a file.

    Each line counts once, however often its file is read: a second epoch does not count
    or write it again. Several datasets may share one object.

    The file has a header and a tab-separated line for each bad row: path, line number
    from 1, reason, length in bytes, and the first 1,024 bytes of the row, escaped like
    Python bytes (`row.encode("ascii").decode("unicode_escape").encode("latin-1")`
    restores them).

    Args:
        path: File for the bad rows. It is overwritten, and not created until there are
            bad rows. `None`: only count them.
        max_bad_share: Largest allowed share of bad rows, from 0 (none) to 1 (any
            number). It is checked from 10,000 rows on, and at the end of the data.

    Attributes:
        num_rows: Number of rows read, valid and bad.
        num_bad: Number of bad rows.
        reasons: `collections.Counter` of the reasons, without values from the data ("I3
            must be an integer or empty").
        schema: The columns of the rows, for the messages.

    Raises:
        ValueError: If `max_bad_share` is not in [0, 1], or `path` is an existing file
            of another kind.

    Example:

    >>> import pipelines.quarantine
    >>> quarantine = pipelines.quarantine.Quarantine(max_bad_share=0.5)
    >>> quarantine.record("day_0", 0, 100, [(17, b"1\t2", "expected 40 columns")])
    >>> quarantine.num_rows, quarantine.num_bad
    (100, 1)
    """

    def __init__(
        self, path: str | os.PathLike | None = None, max_bad_share: float = 1e-4
    ):
        if not 0 <= max_bad_share <= 1:
            raise UserError(
                "`max_bad_share` must be a share from 0 to 1. "
                f"Received: max_bad_share={max_bad_share!r}"
            )
        self.path = None if path is None else os.fspath(path)
        self.max_bad_share = max_bad_share
        self.num_rows = 0
        self.num_bad = 0
        self.reasons = collections.Counter()
        self._places, self._bad_path = [], None
        self._num_lines_seen = collections.Counter()
        self._lock = threading.Lock()
        self.schema: Schema | None = None
        if self.path is not None:
            _remove_old(self.path)

    @property
    def _num_header_lines(self) -> int:
        """Number of lines before the first row of a file, not counted in positions."""
        return int(self.schema is not None and self.schema.text.header)

    @classmethod
    def resume(cls, path, max_bad_share: float, state: dict) -> "Quarantine":
        """Resume from the state of an earlier object.

        Args:
            path: File of the earlier object; lines written after the state are removed.
            max_bad_share: Largest allowed share of bad rows.
            state: The result of `state`.

        Raises:
            ValueError: If the file is missing or was changed.
        """
        quarantine = cls(max_bad_share=max_bad_share)
        quarantine.path = os.fspath(path)
        quarantine.num_rows, quarantine.num_bad = state["num_rows"], state["num_bad"]
        quarantine.reasons.update(state["reasons"])
        quarantine._places += state["places"]
        quarantine._bad_path = state.get("bad_path")
        quarantine._num_lines_seen.update(state["num_lines_seen"])
        if not state["num_bytes"]:
            _remove_old(quarantine.path)
        elif not _cut_off(quarantine.path, state["num_bytes"]):
            raise UserError(
                f"{path} was removed or changed since this work started. Restart it."
            )
        return quarantine

    def state(self) -> dict:
        """Return the JSON-safe state for `resume`, after flushing the file to disk."""
        with self._lock:
            num_bytes = 0
            if self.num_bad and self.path is not None:
                with open(self.path, "rb") as file:
                    os.fsync(file.fileno())
                    num_bytes = file.seek(0, os.SEEK_END)
            return {
                "num_rows": self.num_rows,
                "num_bad": self.num_bad,
                "reasons": dict(self.reasons),
                "places": list(self._places),
                "bad_path": self._bad_path,
                "num_lines_seen": dict(self._num_lines_seen),
                "num_bytes": num_bytes,
            }

    def record(
        self,
        path: str,
        first_line: int,
        num_lines: int,
        bad_lines: Sequence[tuple[int, bytes, str]],
    ) -> None:
        """Record a block of lines.

        Args:
            path: File of the block.
            first_line: Position of the first line in the file, from 0.
            num_lines: Number of lines in the block.
            bad_lines: `(position in the file from 0, line, reason)` of each bad line.

        Raises:
            BadRowsError: If too many of the rows seen so far are bad.
        """
        with self._lock:
            seen = max(self._num_lines_seen[path], first_line)
            end = first_line + num_lines
            if end > seen:
                self._num_lines_seen[path] = end
                self.num_rows += end - seen
                self._keep(path, [bad for bad in bad_lines if bad[0] >= seen])
        if self.num_rows >= MIN_ROWS_TO_JUDGE:
            self.check()

    def check(self) -> None:
        """Check the share of bad rows.

        Raises:
            BadRowsError: If too many of the rows seen so far are bad.
        """
        if self.num_bad > self.max_bad_share * self.num_rows:
            lines = self._summary()
            share = f"{min(1.0, 2 * self.num_bad / self.num_rows):.2g}"
            advice = f"To skip them, allow more bad rows: `max_bad_share={share}`."
            if self.num_bad * 2 > self.num_rows:  # more than isolated bad rows
                advice = explain(self._bad_path, self.schema) or _OTHER_FILE
            elif all(_HEADER_LINE.search(place) for place in self._places):
                advice = (
                    "The first line is a header: remove it, for example with tail -n "
                    "+2."
                )
            error = BadRowsError("\n".join([*lines, advice]))
            error.one_line = f"{lines[0]} First: {lines[1].strip()[:160]}. {advice}"
            if self.path is not None:
                error.one_line += f" All of them: {self.path}"
            raise error

    def _keep(self, path, bad_lines):
        if not bad_lines:
            return
        self.num_bad += len(bad_lines)
        self._bad_path = self._bad_path or path
        for position, _, reason in bad_lines:
            self.reasons[reason.partition(", found ")[0]] += 1
            if len(self._places) < _NUM_PLACES:
                number = position + 1 + self._num_header_lines
                self._places.append(f"{path}:{number}: {reason}")
        if self.path is not None:
            is_new = not os.path.exists(self.path)
            with (
                disk.explaining("the list of bad rows", self.path),
                open(self.path, "a", encoding="ascii", newline="") as file,
            ):
                file.write(HEADER if is_new else "")
                for position, line, reason in bad_lines:
                    row = _escape(line[:MAX_ROW_BYTES].decode("latin-1"))
                    file.write(
                        f"{_escape(path)}\t{position + 1 + self._num_header_lines}\t"
                        f"{_escape(reason)}\t"
                        f"{len(line)}\t{row}\n"
                    )

    def _summary(self) -> list[str]:
        lines = [
            f"{self.num_bad:,} of {self.num_rows:,} rows read are bad "
            f"({self.num_bad / self.num_rows:.3%}); at most "
            f"{self.max_bad_share:.3%} are allowed.",
            *(f"  {place}" for place in self._places),
        ]
        if self.num_bad > len(self._places):
            lines.append(f"  and {self.num_bad - len(self._places):,} more")
        if self.path is None:
            lines.append('To see them all: Quarantine("bad_rows.tsv").')
        else:
            lines.append(f"All of them are in {self.path}.")
        return lines


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _remove_old(path):
    if not os.path.exists(path):
        return
    if os.path.getsize(path):
        with open(path, "rb") as file:
            if file.read(len(HEADER)) != HEADER.encode():
                raise UserError(
                    f"{path} is not a file of bad rows, so it is not overwritten. "
                    "Remove it, or name another `path`."
                )
    os.remove(path)


def _cut_off(path, num_bytes) -> bool:
    """Truncate a file of bad rows; return False if it is missing or too short."""
    if not os.path.exists(path) or os.path.getsize(path) < num_bytes:
        return False
    with open(path, "r+b") as file:
        if file.read(len(HEADER)) != HEADER.encode():
            return False
        file.truncate(num_bytes)
    return True
