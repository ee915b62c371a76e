"""What runs the official implementation from outside, and the files made with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.official.adapter import InPlaceOfCUDA, Official
from benchmarks.official.cases import CASES
from benchmarks.official.draws import Draws
from benchmarks.official.reference import layout_differences

REFERENCE = Path(__file__).parent / "reference"
CHECKOUT = os.environ.get("TORCHRL_TDMPC_OFFICIAL")


def test_draws_are_what_the_operations_drew():
    with Draws() as draws:
        noise, like = torch.randn(2), torch.randn_like(torch.ones(3))
        exponential = torch.empty(2).exponential_()
        assert torch.equal(draws.take("randn_like"), like)
        assert torch.equal(draws.take("randn"), noise)
        assert torch.equal(draws.take("exponential_"), exponential)
        pairs = [torch.randperm(5), torch.randperm(5)]
        assert torch.equal(draws.take("randperm", 2), torch.stack(pairs))


def test_draws_keep_what_is_changed_afterwards():
    with Draws() as draws:
        noise = torch.randn(2)
        drawn = noise.clone()
        noise *= 2
        assert torch.equal(draws.take("randn"), drawn)


def test_draws_see_below_vmap():
    def drop(weight, x):
        return nn.functional.dropout(weight * x, 0.5, True)

    weight, x = torch.ones(4, 3), torch.ones(5, 3)
    with Draws() as draws:
        y = torch.vmap(drop, (0, None), randomness="different")(weight, x)
        assert torch.equal(draws.take("bernoulli") * 2, y)


def test_draws_that_nobody_takes_are_refused():
    with pytest.raises(RuntimeError, match=r"nobody took these draws: {'rand': 1}"), Draws():
        torch.rand(1)
    with pytest.raises(RuntimeError, match="rand drew 1 times and not 2 times"), Draws() as draws:
        torch.rand(1)
        draws.take("rand", 2)


def test_cuda_is_replaced():
    with InPlaceOfCUDA(torch.device("meta")):
        assert torch.device("cuda:0").type == torch.device("cuda", 0).type == "meta"
        assert torch.zeros(2, device="cuda:0").is_meta
        assert torch.ones(2).to("cuda", torch.float64).is_meta
        assert nn.Linear(2, 1).to(device="cuda:0").weight.is_meta
        assert torch.zeros(2, device="cpu").device.type == "cpu"


def test_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no tdmpc2/tdmpc2.py"):
        Official(tmp_path)


def test_layout_differences():
    expected = {"a": np.zeros(3, np.float32), "b": np.zeros(1), "c": np.zeros(2)}
    assert layout_differences(expected, expected) == []
    made = {"a": np.zeros(3), "c": np.zeros((2, 1)), "d": np.zeros(1)}
    assert layout_differences(made, expected) == [
        "a is float64 (3,), not float32 (3,)",
        "b is missing",
        "c is float64 (2, 1), not float64 (2,)",
        "d is new",
    ]


@pytest.mark.skipif(CHECKOUT is None, reason="TORCHRL_TDMPC_OFFICIAL names no checkout")
def test_files_are_made_in_the_layout_of_those_here(tmp_path):
    names = [path.stem for path in REFERENCE.glob("*.npz") if path.stem in CASES]
    for folder, seed in ("one", 3), ("again", 3), ("other", 4):
        command = [sys.executable, "-m", "benchmarks.official.reference", CHECKOUT]
        command += [tmp_path / folder, "--seed", str(seed), "--like", REFERENCE, "--only", *names]
        subprocess.run(command, check=True, cwd=REFERENCE.parents[1])
    assert names
    for name in names:
        one, again, other = (
            np.load(tmp_path / folder / f"{name}.npz") for folder in ("one", "again", "other")
        )
        assert all(np.array_equal(one[key], again[key]) for key in one.files)
        assert not np.array_equal(one["forward/latent"], other["forward/latent"])
