"""Small logs as files, and what a guess makes of their columns."""

import pathlib


def save(folder, text, name="log.csv"):
    path = pathlib.Path(folder) / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def role(guess, column):
    (found,) = [one for one in guess.columns if one.column == column]
    return found.taken_as
