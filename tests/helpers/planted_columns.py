"""Columns of generated logs, each of which moves the chance of a click."""

import pathlib

import numpy as np


class Rows:
    """Draw columns; each adds to the logit of its row."""

    def __init__(self, num_rows, seed):
        self.num_rows = num_rows
        self.rng = np.random.default_rng(seed)
        self.logits = np.zeros(num_rows)
        self._salt = 0

    def ids(self, num_ids, scale=0.7, shape=None):
        """Draw ids, small ones more often, with an effect of each."""
        ids = (num_ids * self.rng.random(shape or self.num_rows) ** 2.5).astype(int)
        self.add(ids, num_ids, scale)
        return ids

    def add(self, ids, num_ids, scale):
        self._salt += 1
        effects = np.random.default_rng(self._salt).normal(0, scale, num_ids)[ids]
        self.logits += effects if effects.ndim == 1 else effects.mean(1)

    def counts(self, scale=0.3):
        """Draw counts with a heavy tail."""
        logs = self.rng.normal(1.5, 1.3, self.num_rows)
        self.logits += scale * (logs - 1.5)
        return np.floor(np.exp(logs)).astype(int)

    def amounts(self, scale=0.4):
        """Draw decimal numbers."""
        amounts = self.rng.normal(size=self.num_rows)
        self.logits += scale * amounts
        return amounts

    def gaps(self, texts, share=0.1, mark=""):
        """Put a mark in place of some cells."""
        gaps = self.rng.random(self.num_rows) < share
        return [mark if gap else text for gap, text in zip(gaps, texts)]

    def clicks(self, rate=-1.2):
        chances = 1 / (1 + np.exp(-(self.logits + rate)))
        return (self.rng.random(self.num_rows) < chances).astype(int)


def texts(values):
    return list(map(str, values.tolist()))


def hex_texts(ids, salt):
    """Name ids by eight hexadecimal digits, as hashed categories have."""
    names = (ids + 1) * 2654435761 + salt * 40503 & 0xFFFFFFFF
    return [f"{name:08x}" for name in names.tolist()]


def named(ids, names):
    return [names[number] for number in ids.tolist()]


def write(path, columns, delimiter=",", header=()):
    lines = [delimiter.join(row) for row in zip(*columns)]
    if header:
        lines.insert(0, delimiter.join(header))
    pathlib.Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(path)]


def folder_of(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
