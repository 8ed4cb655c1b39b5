"""Going on with a run that was cut: what it was, and that it is the same now."""

import dataclasses
import os

from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import COMPLETED
from pipelines.runs.folder import RunFolder
from tf_dlrm.training.checkpoints import changed_files


def check_same(
    folder: RunFolder, config: RunConfig, data: dict, vocabulary=None
) -> None:
    """Refuses to go on with a run under other options, or with other data.

    Files are compared by name, as they may have been moved, and by their content as
    `tf_dlrm.runtime.disk.fingerprints` sees it; runs of earlier versions did not note
    the content. Another number of devices is no difference.

    Args:
        folder: The folder of the run.
        config: The config that is given now.
        data: The data that is given now, as `describe` would be told.
        vocabulary: The vocabulary that is given now, or `None`.

    Raises:
        ValueError: If something differs; each is named.
    """
    before, now = dataclasses.asdict(folder.read_config()), dataclasses.asdict(config)
    differing = [
        f"--{name.replace('_', '-')} was {before[name]}, is {now[name]}"
        for name in before
        if before[name] != now[name] and not (name in COMPLETED and now[name] is None)
    ]
    stored = folder.read_data()
    for name in ("records", "train", "valid", "warm_start"):
        was, given = _names(stored.get(name)), _names(data.get(name))
        if was != given:
            shown = [" ".join(each) or "nothing" for each in (was, given)]
            option = name.replace("_", "-")
            differing.append(f"--{option} was {shown[0]}, is {shown[1]}")
    if bool(stored.get("progressive")) != bool(data.get("progressive")):
        shown = ["on" if each.get("progressive") else "off" for each in (stored, data)]
        differing.append(f"--progressive was {shown[0]}, is {shown[1]}")
    if vocabulary is not None:
        if vocabulary.digest != folder.read_vocabulary().digest:
            differing.append("--vocabulary is another")
    if differing:
        raise ValueError(
            f"{folder.path} holds a run with other options: {'; '.join(differing)}. "
            "Leave them out (--resume takes those of the run), or choose another --out."
        )
    _check_content(folder, stored.get("content") or {}, data.get("content") or {})


def _check_content(folder, before, now):
    changed = [
        f"{file} of --{name}"
        for name in before
        for file in changed_files(before[name], now.get(name, before[name]))
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{folder.path} cannot go on: the content is another than when the run was "
            f"begun, of {', '.join(changed[:3])}{more}. Bring back what was there, or "
            "choose another --out."
        )


def _names(paths) -> list[str]:
    paths = [paths] if isinstance(paths, str) else paths or []
    return [os.path.basename(path.rstrip("/")) for path in paths]
