"""`tf-dlrm publish`, `follow-deltas`, `rollback` and `release`: fresh models."""

import dataclasses
import time
from typing import ClassVar, Literal

import tyro

from pipelines.runtime import UserError


@dataclasses.dataclass
class Publish:
    """Publish the model of a run: only what changed since the last publication."""

    parameters: ClassVar = {"base_dir": "output", "dtype": "table_dtype"}

    model: str
    """Folder of the run."""
    output: str = "saved_models/ctr"
    """Folder of the published model, or its address in an object store."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model to publish: the one that the run saved as its model, its best or its
    last."""
    max_hotness: int = 1
    """Length of the padded bags of the signature serving_default."""
    table_dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32"
    """Data type of the stored tables."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.runs.folder import RunFolder

        RunFolder(self.model).find_model(self.which)
        return [
            f"publish {self.model} to {self.output}: a delta if its newest base has "
            "the same vocabulary and options, otherwise a base"
        ]

    def run(self) -> None:
        """Publish the model."""
        from pipelines.publishing import publish
        from pipelines.runs.folder import RunFolder
        from tf_dlrm.runtime import format_bytes

        done = publish(
            RunFolder(self.model),
            self.output,
            self.which,
            self.table_dtype,
            max_hotness=self.max_hotness,
        )
        kind = "base" if done.is_base else f"delta with {done.num_rows:,} rows"
        print(
            f"{self.output}: published {done.position}, a {kind}, "
            f"{format_bytes(done.num_bytes)} in {done.seconds:.1f} s."
        )
        if done.reason:
            print(f"Not released ({done.health}): {done.reason}")


@dataclasses.dataclass
class FollowDeltas:
    """Keep a folder of SavedModel versions at the newest release of a model.

    TensorFlow Serving loads each new version beside the old one, and swaps them.
    """

    parameters: ClassVar = {"output_dir": "output", "base_dir": "published"}

    published: tyro.conf.Positional[str]
    """Folder of the published model, or its address."""
    output: str
    """Local folder of versions, which the server watches."""
    every_seconds: float = 1.0
    """Seconds between two looks at HEAD.json."""
    keep: int = 2
    """Number of newest versions to keep."""
    once: bool = False
    """Write the present release, if it is new, and end."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        how = "once" if self.once else f"every {self.every_seconds:g} s"
        return [
            f"look at {self.published}/HEAD.json {how}, and write each new release as "
            f"the next version in {self.output}"
        ]

    def run(self) -> None:
        """Follow the published model until the process is stopped."""
        import tf_dlrm

        if self.every_seconds < 0 or self.keep < 1:
            raise UserError(
                "--every-seconds must be at least 0, and --keep at least 1."
            )
        replica = tf_dlrm.serving.Replica(self.published)
        if not self.once:
            replica.follow(self.every_seconds, self.output, keep=self.keep, say=_say)
            return
        start = time.perf_counter()
        path = replica.materialize(self.output, self.keep)
        seconds = time.perf_counter() - start
        if path is not None:
            print(f"{path}: state {replica.head()}, written in {seconds:.1f} s.")
        elif replica.head() is None:
            raise UserError(f"{self.published} has no HEAD.json: nothing is released.")
        else:
            print(f"{self.output}: its newest version is {replica.head()} already.")


def _say(line: str) -> None:
    print(line, flush=True)


@dataclasses.dataclass
class Rollback:
    """Make replicas serve an earlier state of a published model, until `release`."""

    parameters: ClassVar = {"base_dir": "published"}

    published: tyro.conf.Positional[str]
    """Folder of the published model, or its address."""
    to: int
    """Sequence number of the state; 0 for the base."""
    base: int | None = None
    """Version of the base; default: the one that is served."""
    reason: str = ""
    """Reason to record in HEAD.json."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        return [f"move {self.published}/HEAD.json to sequence {self.to}, and pin it"]

    def run(self) -> None:
        """Move HEAD back."""
        import tf_dlrm

        place = tf_dlrm.serving.rollback(
            self.published, self.to, self.base, reason=self.reason
        )
        print(
            f"{self.published}: replicas serve {place} from now on. A training that "
            f"publishes goes on, but is not served until tf-dlrm release "
            f"{self.published}."
        )


@dataclasses.dataclass
class Release:
    """Make replicas serve the last state of a published model, and end a rollback."""

    parameters: ClassVar = {"base_dir": "published"}

    published: tyro.conf.Positional[str]
    """Folder of the published model, or its address."""
    to: int | None = None
    """Sequence number in the newest base; default: the last one."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        place = "the last state" if self.to is None else f"sequence {self.to}"
        return [f"move {self.published}/HEAD.json to {place}, and unpin it"]

    def run(self) -> None:
        """Move HEAD forward."""
        import tf_dlrm

        place = tf_dlrm.serving.release(self.published, self.to)
        print(f"{self.published}: replicas serve {place} from now on.")
