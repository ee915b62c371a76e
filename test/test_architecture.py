"""The rooms of the package: imports run down, and importing loads nothing that is optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchrl_tdmpc"
BOTTOM = {"envs", "data", "modules"}
BELOW_TRAINERS = {*BOTTOM, "objectives", "planners", "checkpoints", "recording"}
# What a room may import of the others
ALLOWED = {
    "envs": set(),
    "data": set(),
    "modules": set(),
    "objectives": {"modules"},
    "planners": {"modules"},
    "checkpoints": {*BOTTOM, "objectives", "planners"},
    "recording": {*BOTTOM, "objectives", "planners", "checkpoints"},
    "trainers": BELOW_TRAINERS,
    "cli": {*BELOW_TRAINERS, "trainers"},
}
COMMAND_LINE = {"hydra", "omegaconf"}  # packages of cli alone


def imported(path: Path) -> set[str]:
    """The full names of what a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_room_has_its_floor():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_down(room):
    for path in (PACKAGE / room).rglob("*.py"):
        names = imported(path)
        of_ours = {name.split(".")[1] for name in names if name.startswith("torchrl_tdmpc.")}
        assert of_ours & set(ALLOWED) <= {room, *ALLOWED[room]}, path
        if room != "cli":
            assert not {name.split(".")[0] for name in names} & COMMAND_LINE, path


def test_a_room_is_imported_by_its_full_name():
    """Relative imports, and names of the package itself, would hide which room they come from."""
    for path in PACKAGE.glob("*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module != "torchrl_tdmpc", (path, node.lineno)
            elif isinstance(node, ast.Import):
                assert "torchrl_tdmpc" not in {alias.name for alias in node.names}, path


def test_importing_the_package_loads_nothing_optional():
    optional = [
        "hydra",
        "omegaconf",
        "yaml",
        "matplotlib",
        "dm_control",
        "gymnasium",
        "wandb",
        "tensorboard",  # tqdm is not among them: torchrl itself loads it
    ]
    code = f"import sys, torchrl_tdmpc; print(sorted(set({optional}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
