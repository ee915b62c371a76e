"""The rooms of the package: imports run down, and importing loads nothing that is optional."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensordict
import torchrl

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
    "recording": {*BOTTOM, "objectives", "planners"},
    "trainers": BELOW_TRAINERS,
    "cli": {*BELOW_TRAINERS, "trainers"},
}
# Private attributes of objects of TorchRL and TensorDict, by the file that may read them
PRIVATE = {
    "torchrl_series.py": {
        *("_carrier", "_env", "_envs", "_frames", "_has_update_associated"),
        *("_new_unsafe", "_workers"),
    },
    # As TorchRL's own transforms and batched environments call those below them
    "envs/standard.py": {"_step"},
    "envs/border.py": {"_reset", "_step"},
    "envs/layers.py": {"_env"},
    "envs/state.py": {"_step_count"},  # dm_control's, which has no public one
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


def test_what_lies_below_all_rooms_imports_none():
    paths = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert {path.name for path in paths} == {"durable.py", "torchrl_series.py"}
    for path in paths:
        assert not [name for name in imported(path) if name.startswith("torchrl_tdmpc")], path


def test_a_room_is_imported_by_its_full_name():
    """Relative imports, and names of the package itself, would hide which room they come from."""
    for path in PACKAGE.glob("*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module != "torchrl_tdmpc", (path, node.lineno)
            elif isinstance(node, ast.Import):
                assert "torchrl_tdmpc" not in {alias.name for alias in node.names}, path


def private_names(tree: ast.AST) -> set[str]:
    """Names that begin with one underscore, of objects other than ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()"):
                names.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            names |= {x.value for x in node.args if isinstance(x, ast.Constant)}
    return {n for n in names if isinstance(n, str) and re.match("_[a-z]", n)}


def test_private_attributes_of_torchrl_are_read_in_one_place():
    of_torchrl, folder = set(), Path(torchrl.__file__).parent
    rooms = [folder / name for name in ("collectors", "data", "envs", "modules", "objectives")]
    for room in [*rooms, Path(tensordict.__file__).parent]:
        for path in room.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            of_torchrl |= set(re.findall(r"(?:self\.|def )(_[a-z]\w*)", text))
    found = {
        path.relative_to(PACKAGE).as_posix(): private_names(ast.parse(path.read_text("utf-8")))
        for path in PACKAGE.rglob("*.py")
    }
    found = {path: names & of_torchrl for path, names in found.items() if names & of_torchrl}
    assert found == PRIVATE


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
    code = (
        "import sys, torchrl.collectors; before = set(sys.modules)  # with Ray there, more of it\n"
        "import torchrl_tdmpc\n"
        f"print(sorted((set({optional}) & set(sys.modules)) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
