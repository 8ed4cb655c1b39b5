"""Run each command of the installed package once, on small data, in the working folder.

`python -P wheel_cases.py REPOSITORY` prints a line of JSON a command: its exit status,
and which files of the repository Python opened. An installed package must need none.
The script fails if a command failed or opened one.
"""

import json
import pathlib
import sys
import traceback

SMALL = "--bottom-mlp-dims 8 4 --top-mlp-dims 8 1 --embedding-dim 4 --batch-size 256"
COMMANDS = (
    "runs",
    "generate --output train.tsv --rows 2000",
    "generate --output valid.tsv --rows 500 --first-row 2000",
    "schema --input valid.tsv --out guess.json",
    "profile-trace --input train.tsv --output profile.json",
    "prepare --input train.tsv --valid valid.tsv --out records --min-count 2",
    f"train --train train.tsv --valid valid.tsv --out run --epochs 1 {SMALL}",
    f"tune --train records --out search --trials 1 --space tables {SMALL}",
    "evaluate --model run --input valid.tsv",
    "report run --output report",
    "tables --model run",
    "importance --model run --input valid.tsv",
    "export --model run --output saved_models/ctr",
    "verify saved_models/ctr",
    "predict --model saved_models/ctr --input valid.tsv --output scores.csv",
    "publish --model run --output published/ctr",
    "follow-deltas published/ctr --output serving/ctr --once",
    "rollback published/ctr --to 0",
    "release published/ctr",
)


def watch_files(repository: pathlib.Path) -> set[str]:
    """Return a set that will hold the files of the repository that Python opens."""
    opened: set[str] = set()
    inside = f"{repository}/"
    # An environment or the working folder may lie in the repository.
    folders = (f"{sys.prefix}/", f"{pathlib.Path.cwd()}/")
    allowed = tuple(f for f in folders if f.startswith(inside) and f != inside)

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.listdir", "os.scandir") or not arguments:
            return
        path = f"{arguments[0]}/"
        inner = path != inside and path.startswith(inside)
        if inner and not path.startswith(allowed):
            opened.add(path.removesuffix("/"))

    sys.addaudithook(hook)
    return opened


def main() -> None:
    script = str(pathlib.Path(__file__).resolve())
    opened = watch_files(pathlib.Path(sys.argv[1]).resolve())
    import pipelines
    import tf_dlrm
    from pipelines import cli

    files = {"pipelines": pipelines.__file__, "tf_dlrm": tf_dlrm.__file__}
    print("RESULT", json.dumps(files), flush=True)
    failed = False
    for command in COMMANDS:
        try:
            code = cli.main(command.split())
        except Exception:
            traceback.print_exc()
            code = 70  # as sysexits.h numbers a bug
        result = {
            "command": command,
            "code": code,
            "opened": sorted(opened - {script}),
        }
        failed = failed or code != 0 or bool(result["opened"])
        print("RESULT", json.dumps(result), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
