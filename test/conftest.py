"""What every test runs under."""

import copy
import functools
import gc
import os

# Networks here are tiny, and tests run side by side: a second thread would wait more than compute.
# Processes that tests start inherit it, so it is set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from torchrl_tdmpc.envs import choose_renderer

# Before a test module imports dm_control
choose_renderer()


def compile_models_once():
    """Of one description MuJoCo makes one model; a tenth of a second each, thousands of times."""
    import mujoco  # now that it has a renderer

    from_xml_string = mujoco.MjModel.from_xml_string

    @functools.lru_cache
    def compiled(xml, assets):
        return from_xml_string(xml, dict(assets))

    def copied(xml, assets=None):
        return copy.copy(compiled(xml, tuple(sorted((assets or {}).items()))))

    mujoco.MjModel.from_xml_string = copied


compile_models_once()

# They train or compile. The others are make test-fast.
SLOW = {
    "test_benchmarks",
    "test_evaluate",
    "test_cli",
    "test_online_trainer",
    "test_execution",
    "test_multi_gamma_run",
    "test_parity",
    "test_resume",
    "test_signals",
    "test_typing",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("compile") == "default":  # minutes each: in make test-compiled
            item.add_marker(pytest.mark.compiled)


def pytest_collection_finish():
    """Evaluations collect garbage in full: leave out what was imported, which stays."""
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption(
        "--base-seed",
        type=int,
        default=0,
        help="added to every seed that torch is given: no test may hold by its seed",
    )


def pytest_configure(config):
    if not (base := config.getoption("--base-seed")):
        return
    manual_seed, generator = torch.manual_seed, torch.Generator

    class ShiftedGenerator(generator):
        def manual_seed(self, seed):
            return super().manual_seed(base + seed)

    torch.manual_seed = lambda seed: manual_seed(base + seed)
    torch.Generator = ShiftedGenerator
