"""Options, checks and descriptions of files that several commands share."""

import pathlib
import tempfile
from typing import Annotated

import tyro

from pipelines.runtime import UserError, disk, remote_files

Files = Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")]


def read_truth(paths) -> dict | None:
    """Return the best possible scores, if `tf-dlrm generate` wrote the one file."""
    report = pathlib.Path(f"{paths[0]}.json")
    if len(paths) != 1 or not report.is_file():
        return None
    try:
        content = disk.read_json(report)
        names = ("num_rows", "best_auc", "best_log_loss")
        return {name: content[name] for name in names}
    except (ValueError, KeyError, TypeError):
        return None  # another program wrote the file


def check_output(output, inputs=(), option: str = "--output") -> None:
    """Check that an output file can be written, before any work is done.

    Args:
        output: Path of a file to write.
        inputs: Paths of the input files.
        option: The option that names the output, for messages.

    Raises:
        ValueError: If the output is a directory or one of the inputs.
        OSError: If the output cannot be written.
    """
    output = pathlib.Path(output)
    if output.is_dir():
        raise UserError(f"{option} {output} is a directory; name a file.")
    if output.exists() and any(
        not remote_files.is_remote(path) and output.samefile(path) for path in inputs
    ):
        raise UserError(
            f"{option} {output} is one of the input files; name another file."
        )
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    with disk.explaining(f"{option} {output}", folder):
        with tempfile.TemporaryFile(dir=folder):
            pass


def load_schema(path: str | None):
    """Return the schema of a file or of a built-in name; `None` for `None`."""
    from pipelines.schema import Schema

    return None if path is None else Schema.load(path)


def describe_files(paths) -> str:
    """Describe files for --dry-run: the first path, how many more, the total size."""
    size = sum(map(remote_files.size_of, paths))
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({size / 1e6:,.1f} MB)"


def describe_input(paths) -> str:
    """Describe files, or a folder of records, for --dry-run."""
    from pipelines.files import expand_paths
    from pipelines.log_data import find_records
    from pipelines.records import Manifest

    folder = find_records(paths)
    if folder is None:
        return describe_files(expand_paths(paths))
    manifest = Manifest.load(folder)
    splits = (f"{split} {manifest.num_rows(split):,}" for split in manifest.splits)
    return f"the records in {folder} ({', '.join(splits)} rows)"
