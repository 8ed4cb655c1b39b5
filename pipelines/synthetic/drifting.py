"""`Drifting`: days of a click log whose ids come and go, with known probabilities.

# n rows of a day, N ids that are in use
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipelines.runtime import UserError
from pipelines.schema import Dense, Schema, Sparse
from pipelines.schema.growing import Growing
from pipelines.synthetic.checks import check_click_rate, check_integer
from pipelines.synthetic.distributions import sample_ranks
from pipelines.synthetic.score import Score
from pipelines.synthetic.source import Report
from pipelines.synthetic.truth import bias_for, sigmoid, stream
from pipelines.whole_files import replacing, write_text

COLUMNS = ("user", "item", "page")
_DAY, _IDS = range(2)  # streams of random numbers
_SECONDS_PER_DAY, _START = 86_400, 1_767_225_600  # 2026-01-01T00:00:00Z


@dataclasses.dataclass(frozen=True)
class Drifting:
    """A click log of days in which a share of the ids is replaced every day.

    Each of three columns has `num_ids` ids in use, whose ranks are Zipf distributed. At
    the end of each day, the share `drift` of them, whatever their ranks, is replaced by
    new ids, which were never used before and do not depend on the old ones. The
    logit of a click is the sum of an effect of each id and one of the price.

    A day depends on the arguments and on its number only.

    Args:
        seed: Seed of the truth and of the rows.
        num_ids: Number of ids of each column that are in use.
        drift: Share of the ids that are replaced each day, in [0, 1].
        click_rate: Mean click probability.
        effect: Standard deviation, in logits, of the effects of each column's ids.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import os, tempfile
    >>> from pipelines.synthetic import Drifting
    >>> folder = tempfile.mkdtemp()
    >>> reports = Drifting(num_ids=50).write_days(folder, num_days=2, num_rows=100)
    >>> sorted(os.listdir(folder))
    ['day_00.csv', 'day_01.csv', 'report.json', 'schema.json']
    """

    seed: int = 0
    num_ids: int = 2000
    drift: float = 0.02
    click_rate: float = 0.25
    effect: float = 0.7

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0)
        check_integer("num_ids", self.num_ids, 2)
        check_click_rate(self.click_rate)
        for name, most in (("drift", 1.0), ("effect", 10.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise UserError(
                    f"`{name}` must be from 0 to {most:g}. Received: "
                    f"{name}={getattr(self, name)}"
                )

    def schema(self, growing: bool | Growing = True, **options: object) -> Schema:
        """Return the schema of the days, with growing tables or with other options.

        Args:
            growing: The setting of each sparse feature.
            **options: Other options of each `Sparse`.
        """
        sparse = [Sparse(c, growing=growing, **options) for c in COLUMNS]  # type: ignore[arg-type]
        return Schema("click", (Dense("price"),), tuple(sparse), time="time")

    def ids_of_day(self, day: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids in use on a day by rank, and their effects.

        Args:
            day: Number of the day, from 0.

        Returns:
            The number of replacements of each rank, int64 `(3, N)`, which with the
            rank makes the id; and the effects of the ids, float64 `(3, N)`.
        """
        shape = (len(COLUMNS), self.num_ids)
        generation = np.zeros(shape, np.int64)
        effects = stream(self.seed, _IDS, 0).standard_normal(shape)
        for number in range(1, day + 1):
            rng = stream(self.seed, _IDS, number)
            replaced = rng.random(shape) < self.drift
            generation += replaced
            effects = np.where(replaced, rng.standard_normal(shape), effects)
        return generation, effects * self.effect

    def day(self, day: int, num_rows: int) -> tuple[pa.Table, np.ndarray]:
        """Return the rows of a day, and their click probabilities `(n,)`."""
        generation, effects = self.ids_of_day(day)
        rng = stream(self.seed, _DAY, day)
        sizes = (self.num_ids,) * len(COLUMNS)
        ranks = sample_ranks(rng, num_rows, sizes)
        price = np.round(rng.normal(size=num_rows), 3)
        logits = 0.5 * price
        for place in range(len(COLUMNS)):
            logits += effects[place, ranks[:, place]]
        probabilities = sigmoid(logits + self._bias())
        cells: dict[str, pa.Array] = {
            "click": pa.array((rng.random(num_rows) < probabilities).astype(np.int8)),
            "time": pa.array(
                _START
                + _SECONDS_PER_DAY * day
                + np.sort(rng.integers(0, _SECONDS_PER_DAY, num_rows))
            ),
            "price": pa.array(price),
        }
        for place, column in enumerate(COLUMNS):
            texts = pa.array(
                [f"{column[0]}{r}_{g}" for r, g in enumerate(generation[place])]
            )
            cells[column] = texts.take(pa.array(ranks[:, place]))
        return pa.table(cells), probabilities

    def _bias(self):
        _, effects = self.ids_of_day(0)
        rng = stream(self.seed, _DAY, 1 << 20)
        ranks = sample_ranks(rng, 20_000, (self.num_ids,) * len(COLUMNS))
        logits = 0.5 * rng.normal(size=20_000)
        for place in range(len(COLUMNS)):
            logits += effects[place, ranks[:, place]]
        return bias_for(self.click_rate, logits)

    def write_days(
        self,
        folder: str | os.PathLike,
        num_days: int,
        num_rows: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Report]:
        """Write days as CSV files, with their schema and the best possible scores.

        Args:
            folder: Folder for `day_00.csv`, ..., `schema.json` and `report.json`.
            num_days: Number of days, at least 1.
            num_rows: Number of rows of each day, at least 1.
            progress: Function that is called with the number of rows written and of
                all rows.

        Returns:
            The `Report` of each day.

        Raises:
            ValueError: If an argument is out of range.
        """
        check_integer("num_days", num_days, 1)
        check_integer("num_rows", num_rows, 1)
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        digits = max(2, len(str(num_days - 1)))
        reports = []
        for day in range(num_days):
            rows, probabilities = self.day(day, num_rows)
            name = path / f"day_{day:0{digits}d}.csv"
            with replacing(name) as file:
                file.write((",".join(rows.column_names) + "\n").encode())
                options = pa.csv.WriteOptions(
                    include_header=False, quoting_style="none"
                )
                pa.csv.write_csv(rows, file, options)
            score = Score()
            score.add(rows["click"].to_numpy(), probabilities)
            facts = (score.click_rate, score.auc, score.log_loss, score.entropy)
            report = Report(str(name), num_rows, day * num_rows, self.seed, *facts)
            reports.append(report)
            if progress is not None:
                progress((day + 1) * num_rows, num_days * num_rows)
        self.schema().save(path / "schema.json")
        content = [dataclasses.asdict(report) for report in reports]
        write_text(path / "report.json", json.dumps(content, indent=2) + "\n")
        return reports
