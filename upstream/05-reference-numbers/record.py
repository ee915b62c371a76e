"""Record ``tdmpc2_reference.json``: what the official TD-MPC2 computes for one tiny agent.

From the root of this repository, with a clone of github.com/nicklashansen/tdmpc2::

    python -m upstream.05-reference-numbers.record PATH/TO/tdmpc2

The official code runs as it is, in float32 on CPU. Weights, inputs and every random draw are
recorded beside what it computed from them. The names are explained in ``test/reference/README.md``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from benchmarks.official.adapter import Official
from benchmarks.official.cases import Case
from benchmarks.official.reference import make

OUTPUT = Path(__file__).parent / "test/objectives/tdmpc2_reference.json"
TINY = Case(
    obs_dims=(5,),
    action_dims=(2,),
    settings={
        "batch_size": 4,
        "latent_dim": 16,
        "mlp_dim": 8,
        "enc_dim": 8,
        "num_q": 3,
        "num_bins": 21,
        "num_samples": 12,
        "num_elites": 4,
        "num_pi_trajs": 2,
        "iterations": 2,
    },
)
# What the test does not read
LEFT_OUT = (
    "forward/",
    "update_0/clipped_grad",
    "params_before/log_std",
    "params_after_update_2/log_std",
)


def main(checkout: str, seed: int = 1) -> None:
    """Write the file: one line an array, each number as short as float32 allows."""
    arrays = make(Official(checkout), TINY, seed)
    lines = [
        f"{json.dumps(name)}: {_text(array)}"
        for name, array in arrays.items()
        if not name.startswith(LEFT_OUT)
    ]
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{OUTPUT.name}: {len(lines)} arrays, {OUTPUT.stat().st_size:,} bytes")


def _text(array: np.ndarray) -> str:
    """An array as nested lists."""
    if array.ndim:
        return f"[{','.join(map(_text, array))}]"
    return str(array) if array.dtype.kind == "f" else json.dumps(array.item())


if __name__ == "__main__":
    main(sys.argv[1])
