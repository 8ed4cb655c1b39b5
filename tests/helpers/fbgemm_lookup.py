"""FBGEMM's read-only lookup of ids, in a Python that has it.

    python fbgemm_lookup.py FOLDER

Reads `ids.npy` and `slots.npy` of the folder and writes `rows.npy`.
"""

import pathlib
import sys

import numpy as np


def main(folder):
    import fbgemm_gpu  # noqa: F401
    import torch

    ids, slots = (np.load(folder / f"{name}.npy") for name in ("ids", "slots"))
    rows, _ = torch.ops.fbgemm.zero_collision_hash(
        input=torch.from_numpy(ids),
        identities=torch.from_numpy(slots)[:, None],
        max_probe=16,
        circular_probe=True,
        readonly=True,
        disable_fallback=True,
    )
    np.save(folder / "rows.npy", rows.numpy())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
