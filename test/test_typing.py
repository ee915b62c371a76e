"""The script that mypy checks (make types) uses every public name and runs."""

from __future__ import annotations

import re
from pathlib import Path

from typing_cases import user_script

import torchrl_tdmpc


def test_the_script_uses_every_public_name():
    used = re.findall(r"\btd\.(\w+)", Path(user_script.__file__).read_text("utf-8"))
    assert set(torchrl_tdmpc.__all__) == set(used)


def test_the_script_runs(tmp_path):
    user_script.main(str(tmp_path / "run"))
