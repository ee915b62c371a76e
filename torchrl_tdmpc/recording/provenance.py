"""Where a result comes from: configuration, machine, versions and commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchrl_tdmpc.durable import naming_file

__all__ = ["machine", "write_config"]

PACKAGES = ("torch", "torchrl", "tensordict", "dm-control", "mujoco", "numpy", "torchrl_tdmpc")


def write_config(output_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """Write ``config.yaml``: the resolved configuration, ``machine``, ``versions`` and ``commit``.

    Args:
        output_dir: An existing directory.
        config: Plain nested dictionaries, lists and scalars.

    Returns:
        The path of the file. Its ``machine`` names the processor, the number of its cores that this
        process may use, and the GPU that torch sees, or null. Its ``versions`` names Python and the
        installed packages that shape a result. Its ``commit`` is the git commit that this package
        runs from, ending in ``-dirty`` when tracked files differ from it, and null when the package
        is not in a git checkout.
    """
    import yaml

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        if (version := _version(package)) is not None:
            versions[package] = version
    path = Path(output_dir) / "config.yaml"
    commit = _git_commit(Path(__file__).parent)
    record = {**config, "machine": machine(), "versions": versions, "commit": commit}
    with naming_file(path):
        path.write_text(
            yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return path


# Instructions of a processor that its speed at matrix products depends on
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """What times depend on.

    Returns:
        ``processor``, the number of ``cores`` that this process may use, those of its
        ``instructions`` that matter, and the ``gpu``.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    entries = dict(map(str.strip, line.split(":", 1)) for line in text.splitlines() if ":" in line)
    flags = entries.get("flags", "").split()
    return {
        "processor": entries.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": " ".join(flag for flag in INSTRUCTIONS if flag in flags) or "unknown",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    """What a module says of itself, as its distribution may have another name or leave a part out.

    TorchRL's nightly is distributed as torchrl-nightly; PyTorch's distribution on PyPI does not say
    that it is the CUDA build.
    """
    module = sys.modules.get(package.replace("-", "_"))
    if (version := getattr(module, "__version__", None)) is not None:
        return str(version)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """The commit that ``folder`` belongs to, with ``-dirty``; None when git does not track it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "."):  # an environment that lies inside somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("diff", "HEAD", "--name-only") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
