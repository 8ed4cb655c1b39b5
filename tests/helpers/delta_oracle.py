"""Deltas applied in plain NumPy from their files alone, and exports to compare."""

import hashlib
import json
import pathlib

import ml_dtypes
import numpy as np
import tensorflow as tf


def weights_of(version):
    """Return the weights of an export, in order."""
    reader = tf.train.load_checkpoint(str(pathlib.Path(version, "variables/variables")))
    count = sum(
        key.startswith("weights/") for key in reader.get_variable_to_shape_map()
    )
    name = "weights/{}/.ATTRIBUTES/VARIABLE_VALUE"
    return [reader.get_tensor(name.format(i)) for i in range(count)]


def apply_chain(base_dir, base, sequence):
    """Return the weights of a base with its deltas 1 to `sequence`."""
    folder = pathlib.Path(base_dir, "deltas", str(base))
    facts = json.loads((folder / "base.json").read_text())
    layout, weights = facts["layout"], weights_of(pathlib.Path(base_dir, str(base)))
    parent = facts["sha256"]
    for number in range(1, sequence + 1):
        delta = folder / f"{number:08d}"
        manifest = json.loads((delta / "manifest.json").read_text())
        assert manifest["parents"] == [parent] and manifest["sequence"] == number
        assert manifest["base"] == {"version": base, "sha256": facts["sha256"]}
        for name, file in manifest["files"].items():
            content = (delta / name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        tables, dense = np.load(delta / "tables.npz"), np.load(delta / "dense.npz")
        for i, (name, _, _) in enumerate(layout["tables"]):
            ids, rows = tables[f"ids_{i}"].astype(int), tables[f"rows_{i}"]
            assert (np.diff(ids) > 0).all()
            if layout["table_dtype"] == "bfloat16":
                rows = rows.view(ml_dtypes.bfloat16)
            for variable, table, first, num, column, width, place in layout["places"]:
                if table == name:
                    own = (ids >= first) & (ids < first + num)
                    part = rows[own, column : column + width]
                    weights[variable][ids[own] - first + place] = part
        for j in range(len(layout["dense"])):
            weights[layout["num_table_variables"] + j] = dense[f"dense_{j}"]
        parent = manifest["sha256"]
    return weights


def assert_equal(weights, others):
    """Assert that weights are equal, bit for bit."""
    assert len(weights) == len(others)
    for own, other in zip(weights, others):
        assert own.dtype == other.dtype and own.shape == other.shape
        assert own.tobytes() == other.tobytes()
