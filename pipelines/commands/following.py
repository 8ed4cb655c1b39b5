"""Options of `tf-dlrm train --follow`: endless training, and what it publishes."""

import dataclasses
from typing import Any, Literal

from pipelines.runtime import UserError


@dataclasses.dataclass
class Following:
    """Options of a training that follows a growing folder."""

    follow: str | None = None
    """Folder that grows: train on each new file of it, without end, instead of --train.
    The same command resumes a run that was stopped."""
    follow_order: Literal["name", "time"] = "name"
    """Order of the files: by name, or by event time if the schema has a time column."""
    follow_marker: str | None = None
    """Name of a file, such as _SUCCESS, that appears in a folder when the files next to
    it are finished; default: none."""
    follow_settle_seconds: float = 5.0
    """Seconds without a change after which a file counts as finished, without a
    marker."""
    follow_late: Literal["train", "skip"] = "train"
    """Policy for a file that is before one that was already trained on."""
    follow_idle_seconds: float | None = None
    """Seconds without a new file after which training ends; default: it waits without
    end."""
    publish: str | None = None
    """Folder to publish the changes of the model to, or its address in an object store;
    default: nothing is published."""
    publish_every_seconds: float = 10.0
    """Seconds between two publications."""
    publish_dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32"
    """Data type of the published tables."""
    publish_share: float | None = None
    """Share of the changed rows to publish, those that changed most; default: all."""
    publish_full_every: int | None = None
    """Number of deltas after which a complete export follows; default: never."""
    publish_max_hotness: int = 1
    """Length of the padded bags of the signature serving_default."""

    def check(self, train: Any) -> None:
        """Refuse options that have no effect, or contradict each other.

        Args:
            train: The command `train`.
        """
        if self.follow is None:
            default = Following()
            for field in dataclasses.fields(self):
                if getattr(self, field.name) != getattr(default, field.name):
                    option = field.name.replace("_", "-")
                    raise UserError(f"--{option} has no effect without --follow.")
            return
        for name in ("train", "valid", "progressive", "warm_start"):
            if getattr(train, name):
                option = name.replace("_", "-")
                raise UserError(
                    f"--follow trains on new files, and evaluates on each before that: "
                    f"leave --{option} out."
                )

    def describe(self) -> list[str]:
        """Return what a training that follows would do, one line each."""
        lines = [
            f"train on each finished file of {self.follow}, in the order of "
            f"{self.follow_order}, and evaluate on it before"
        ]
        if self.publish is not None:
            seconds = self.publish_every_seconds
            lines.append(f"publish to {self.publish} every {seconds:g} s")
        return lines

    def run(self, train: Any, strategy: Any, vocabulary: Any, schema: Any) -> None:
        """Train until it is stopped, or no file comes in time.

        Args:
            train: The command `train`.
            strategy: The strategy, or `None`.
            vocabulary: The vocabulary, or `None`.
            schema: The schema, or `None`.
        """
        from pipelines.following import Arrivals, follow

        folder, results = follow(
            self.follow,
            train.out,
            train.config,
            Arrivals(
                self.follow_order,
                self.follow_marker,
                self.follow_settle_seconds,
                self.follow_late,
                idle_seconds=self.follow_idle_seconds,
            ),
            vocabulary,
            schema,
            self._publish_options(),
            strategy=strategy,
            placement=train.placement,
            watching=train.watching,
            checkpoints={
                "every_steps": train.checkpoint_every_steps,
                "every_minutes": train.checkpoint_every_minutes,
                "keep": train.keep_checkpoints,
                "how_to_resume": "run the same command again.",
            },
            origin={"run": train.run_name, "devices": train.devices},
        )
        print(
            f"{folder.path}: trained on {results['num_files']:,} files, "
            f"{results['num_rows']:,} rows; the results of each are in files.csv."
        )

    def _publish_options(self) -> dict[str, Any]:
        if self.publish is None:
            return {}
        from tf_dlrm.callbacks import TopShare

        share = self.publish_share
        return {
            "base_dir": self.publish,
            "every_seconds": self.publish_every_seconds,
            "dtype": self.publish_dtype,
            "rows": "touched" if share is None else TopShare(share),
            "full_every": self.publish_full_every,
            "export": {"max_hotness": self.publish_max_hotness},
        }
