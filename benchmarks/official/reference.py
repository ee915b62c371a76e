"""Make the reference numbers again.

``python -m benchmarks.official.reference CHECKOUT OUTPUT --seed 1`` runs the official
implementation of a checkout and writes one ``.npz`` a case, in the layout that
``test/reference/README.md`` describes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.official.adapter import Official
from benchmarks.official.cases import CASES, Case
from benchmarks.official.numbers import Numbers

__all__ = ["layout_differences", "make"]

ATTEMPTS = 100


def make(official: Official, case: Case, seed: int) -> dict[str, np.ndarray]:
    """The numbers of one case.

    Weights and data are drawn again until the numbers exercise what they should.

    Raises:
        RuntimeError: a hundred draws did not.
    """
    torch.manual_seed(seed)
    for _ in range(ATTEMPTS):
        numbers = Numbers(official, case)
        if not numbers.unmet:
            return {name: np.asarray(value) for name, value in numbers.items()}
    raise RuntimeError(f"{ATTEMPTS} draws gave no {numbers.unmet[0]}.")


def layout_differences(
    made: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> list[str]:
    """Keys, shapes and dtypes in which two sets of arrays differ, in words.

    Examples:
        >>> layout_differences({"a": np.zeros(2)}, {"a": np.zeros(3), "b": np.zeros(1)})
        ['a is float64 (2,), not float64 (3,)', 'b is missing']
    """
    kinds = [{n: f"{a.dtype} {a.shape}" for n, a in arrays.items()} for arrays in (made, expected)]
    ours, theirs = kinds
    differences = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours:
            differences.append(f"{name} is missing")
        elif name not in theirs:
            differences.append(f"{name} is new")
        elif ours[name] != theirs[name]:
            differences.append(f"{name} is {ours[name]}, not {theirs[name]}")
    return differences


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", help="a clone of the official repository")
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--like", type=Path, help="a folder of such files whose layout must be met")
    arguments = parser.parse_args()
    for name in arguments.only if arguments.like else ():
        if not (arguments.like / f"{name}.npz").is_file():
            parser.error(f"--like {arguments.like} holds no {name}.npz; choose cases by --only.")
    official = Official(arguments.checkout)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        numbers = make(official, CASES[name], arguments.seed)
        path = arguments.output / f"{name}.npz"
        np.savez_compressed(path, **numbers)
        print(f"{path}: {len(numbers)} arrays, {path.stat().st_size:,} bytes")
        if arguments.like:
            with np.load(arguments.like / path.name) as expected:
                differences = layout_differences(numbers, dict(expected))
            if differences:
                raise SystemExit(f"{path} is not as in {arguments.like}: {'; '.join(differences)}.")


if __name__ == "__main__":
    main()
