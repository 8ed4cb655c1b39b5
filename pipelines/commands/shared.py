"""Shared by several commands: options, checks, descriptions of files."""

import pathlib
import tempfile
from typing import Annotated

import tyro

from pipelines.runtime import UserError, disk, remote_files

Files = Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")]


def read_truth(paths) -> dict | None:
    """The best possible scores, where `generate` wrote one file and its report."""
    report = pathlib.Path(f"{paths[0]}.json")
    if len(paths) != 1 or not report.is_file():
        return None
    try:
        content = disk.read_json(report)
        wanted = ("num_rows", "best_auc", "best_log_loss")
        return {name: content[name] for name in wanted}
    except (ValueError, KeyError, TypeError):
        return None  # somebody else's file


def check_output(output, inputs=(), option: str = "--output") -> None:
    """Refuse an output file before the work, not after it.

    Args:
        output: Path of a file to write.
        inputs: Files that are read.
        option: The option that names it.

    Raises:
        ValueError: If it is a directory, or one of the inputs.
        OSError: If it cannot be written.
    """
    output = pathlib.Path(output)
    if output.is_dir():
        raise UserError(f"{option} {output} is a directory; name a file.")
    if output.exists() and any(
        not remote_files.is_remote(path) and output.samefile(path) for path in inputs
    ):
        raise UserError(f"{option} {output} is one of the input files.")
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    with disk.explaining(f"{option} {output}", folder):
        with tempfile.TemporaryFile(dir=folder):
            pass


def load_schema(path: str | None):
    """The schema of a file or name; `None` if it is not given."""
    from pipelines.schema import Schema

    return None if path is None else Schema.load(path)


def describe_files(paths) -> str:
    """The first path, how many more, and the size of all, for --dry-run."""
    size = sum(map(remote_files.size_of, paths))
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({size / 1e6:,.1f} MB)"


def describe_input(paths) -> str:
    """The same of a folder of records, or of files."""
    from pipelines.files import expand_paths
    from pipelines.log_data import find_records
    from pipelines.records import Manifest

    folder = find_records(paths)
    if folder is None:
        return describe_files(expand_paths(paths))
    manifest = Manifest.load(folder)
    splits = (f"{split} {manifest.num_rows(split):,}" for split in manifest.splits)
    return f"the records in {folder} ({', '.join(splits)} rows)"
