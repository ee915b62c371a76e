"""Files: checkpoints of a run and of the official implementation, damaged or made up."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from benchmarks.fuzz.outcome import Trial
from torchrl_tdmpc import TDMPC2Loss, make_networks
from torchrl_tdmpc.checkpoints import (
    load_checkpoint,
    load_official,
    official_weights,
    save_checkpoint,
    save_official,
)
from torchrl_tdmpc.cli.evaluate import read_config
from torchrl_tdmpc.modules import ModelSize

SIZE = ModelSize(16, 16, 16, 2, 2)


def make_loss(seed: int = 0) -> TDMPC2Loss:
    """A tiny agent with random weights."""
    torch.manual_seed(seed)
    loss = TDMPC2Loss(*make_networks((5,), 1, SIZE), discount=0.9)
    with torch.no_grad():
        for weight in loss.parameters():
            weight.normal_()
    return loss


def damage(content: bytes, generator: random.Random) -> bytes:
    """One accident that happens to files."""
    position, data = generator.randrange(len(content)), bytearray(content)
    match generator.randrange(6):
        case 0 | 1:
            data[position] ^= 1 << generator.randrange(8)
        case 2:
            del data[position:]
        case 3:
            data[position : position + 512] = bytes(len(data[position : position + 512]))
        case 4:
            data[position:position] = generator.randbytes(generator.randrange(1, 99))
        case 5:
            other = generator.randrange(len(content))
            data[position : position + 64] = content[other : other + 64]
    return bytes(data)


def try_damaged_checkpoints(trial: Trial, folder: Path) -> None:
    """A checkpoint after an accident: refused with nothing loaded, or loaded as it was."""
    source, target = make_loss(), make_loss(1)
    path = save_checkpoint(folder / "whole", 1, {"loss": source}, metadata={"agent_steps": 1})
    content, bad = path.read_bytes(), folder / "bad.torchrl"
    before = {name: w.clone() for name, w in target.state_dict().items()}

    def load() -> bool:
        try:
            load_checkpoint(bad, {"loss": target})
        except BaseException:
            assert same(target.state_dict(), before), "half loaded"
            raise
        is_right = same(target.state_dict(), source.state_dict())
        target.load_state_dict(before)
        return is_right

    while trial.goes_on:
        bad.write_bytes(damage(content, trial.generator))
        trial.attempt("damaged checkpoint", load)


def try_damaged_official_files(trial: Trial, folder: Path) -> None:
    """An official file after an accident: refused, or loaded as it was."""
    source, path, bad = make_loss(), folder / "whole.pt", folder / "bad.pt"
    save_official(path, source)
    expected = official_weights(load_official(path, discount=0.9).loss)
    content = path.read_bytes()
    while trial.goes_on:
        bad.write_bytes(damage(content, trial.generator))
        trial.attempt(
            "damaged official file",
            lambda: same(official_weights(load_official(bad, discount=0.9).loss), expected),
        )


def odd_values(like: Any, generator: random.Random) -> Any:
    """Something else than a weight."""
    shape = like.shape if isinstance(like, torch.Tensor) else (3,)
    odd: list[Callable[[], Any]] = [
        lambda: torch.full(shape, torch.nan),
        lambda: torch.full(shape, -torch.inf),
        lambda: torch.zeros(shape, dtype=torch.complex64),
        lambda: torch.zeros(shape, dtype=torch.bool),
        lambda: torch.zeros((*shape, 2)),
        lambda: torch.zeros(0),
        lambda: torch.zeros(1).expand(2**40),
        lambda: torch.empty(2**40, 0),
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: nn.Parameter(torch.zeros(shape, dtype=torch.float64)),
        lambda: {"a": torch.zeros(2)},
        lambda: generator.choice([None, "word", 3, 1e300, [1.0], (), b"bytes"]),
    ]
    return generator.choice(odd)()


def try_made_up_official_files(trial: Trial, folder: Path) -> None:
    """Official files whose checksums hold and whose entries do not: always refused."""
    path, bad = folder / "whole.pt", folder / "bad.pt"
    save_official(path, make_loss())
    entries = torch.load(path, weights_only=True)["model"]
    plain = [name for name in entries if not name.rpartition(".")[2].startswith("__")]
    while trial.goes_on:
        changed = dict(entries)
        for _ in range(trial.generator.choice((1, 1, 5))):
            name = trial.generator.choice(plain)
            match trial.generator.randrange(4):
                case 0:
                    changed.pop(name, None)
                case 1:
                    changed[trial.generator.choice([7, "new", None, ("a",)])] = torch.zeros(2)
                case _:
                    changed[name] = odd_values(entries[name], trial.generator)
        torch.save({"model": changed}, bad)
        trial.attempt("made-up official file", lambda: load_official(bad, discount=0.9) is None)


def try_made_up_checkpoints(trial: Trial, folder: Path) -> None:
    """Checkpoints whose manifest says something else: refused, or read as what they are."""
    config = {"env": {"task": "cartpole-swingup", "episode_length": 10}, "threads": 1}
    metadata = {"agent_steps": 1, "config": config, "agent": {"action_dim": 1}}
    path = save_checkpoint(folder / "made-up", 1, {"loss": make_loss()}, metadata=metadata)
    bad = folder / "bad.torchrl"
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    here = OmegaConf.create({"device": "cpu"})
    while trial.goes_on:
        changed, where = changed_somewhere(manifest, trial.generator)
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(bad, "w") as copy:
            for entry in source.infolist():
                is_manifest = entry.filename == "manifest.json"
                copy.writestr(entry, json.dumps(changed) if is_manifest else source.read(entry))
        trial.attempt(
            f"manifest with another {where}",
            lambda: read_config(bad, here)[1].action_dim >= 1,
        )
    shutil.rmtree(folder / "made-up")


def changed_somewhere(value: Any, generator: random.Random) -> tuple[Any, str]:
    """A copy of nested JSON with another value at one random place, and the place's name."""
    copy = json.loads(json.dumps(value))
    inner, where = copy, ""
    while True:
        key = generator.choice([*inner] if isinstance(inner, dict) else range(len(inner)))
        where += f"/{key}"
        child = inner[key]
        if isinstance(child, (dict, list)) and child and generator.random() < 0.8:
            inner = child
            continue
        inner[key] = generator.choice(
            [
                None,
                True,
                -1,
                1e300,
                10**40,
                "word",
                "${oc.env:HOME}",
                "../../x",
                [],
                [1],
                {},
                {"a": 1},
            ]
        )
        return copy, where


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal, bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(w, theirs[n]) for n, w in ours.items())
