"""Agents of the official implementation, made by its own code from a checkout given by path."""

from __future__ import annotations

import importlib
import os
import sys
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["Official"]


class Official:
    """The official implementation of a checkout, as it is.

    Its files are imported and not changed. It asks for ``cuda:0`` wherever it allocates:
    :meth:`agent` sends that to a device of the caller's choice. Its module names (``common``,
    ``tdmpc2``) are found for the rest of the process, so one process runs one checkout.

    Args:
        checkout: a clone of the official repository.

    Raises:
        FileNotFoundError: the folder holds no such clone.
        ValueError: another checkout was imported before.
    """

    def __init__(self, checkout: str | Path):
        self.source = Path(checkout).resolve() / "tdmpc2"
        if not (self.source / "tdmpc2.py").is_file():
            raise FileNotFoundError(
                f"{checkout} holds no tdmpc2/tdmpc2.py; give a clone of the official repository."
            )
        if str(self.source) not in sys.path:
            sys.path.insert(0, str(self.source))
        imported = Path(self.module("tdmpc2").__file__)
        if imported.parent != self.source:
            raise ValueError(f"{imported} is imported already; one process runs one checkout.")

    def module(self, name: str) -> ModuleType:
        """One of its modules, such as ``common.math``."""
        return importlib.import_module(name)

    def config(self, **settings: Any) -> Any:
        """Its configuration as its own parser completes it.

        Args:
            **settings: values under its own keys. An agent needs ``obs_shape`` (such as
                ``{"state": (7,)}``), ``action_dim`` and ``episode_length`` beside those that have
                defaults. Nothing is compiled unless ``compile`` says so.

        Raises:
            ValueError: a key that its configuration does not have.
        """
        settings = {"compile": False, **settings}
        defaults = OmegaConf.load(self.source / "config.yaml")
        for key in settings.keys() - set(defaults):
            raise ValueError(f"{key} is no key of {self.source / 'config.yaml'}.")
        # The parser asks Hydra for the folder where a run began; here no run began
        with patch("hydra.utils.get_original_cwd", os.getcwd):
            config = self.module("common.parser").parse_cfg(OmegaConf.merge(defaults, settings))
        for key, value in settings.items():  # the parser derives some keys from others
            setattr(config, key, value)
        return config

    def agent(self, config: Any, device: str | torch.device = "cpu") -> nn.Module:
        """An agent with fresh weights.

        Args:
            config: what :meth:`config` returned. The agent keeps it and counts the planner's extra
                iterations into it, so every agent needs one of its own.
            device: where it computes.
        """
        device = torch.device(device)
        # Encoders gather in a default argument, and the next agent would get those of the last one
        self.module("common.layers").enc.__defaults__[0].clear()
        # Written for an older tensordict, whose to_module took parameters out of their module:
        # Q-functions without data must not be among those that move to the device
        to_module = partialmethod(TensorDict.to_module, preserve_module_state=False)
        with InPlaceOfCUDA(device), patch.object(TensorDict, "to_module", to_module):
            agent = self.module("tdmpc2").TDMPC2(config)
        if device.type == "cpu":
            for optimizer in (agent.optim, agent.pi_optim):
                for group in optimizer.param_groups:
                    group["capturable"] = False  # a CPU has no graphs to capture
        return agent


class InPlaceOfCUDA(TorchFunctionMode):
    """Sends what asks for a CUDA device to another one, a device's name included.

    Examples:
        >>> with InPlaceOfCUDA(torch.device("cpu")):
        ...     torch.ones(2, device="cuda:0").device, torch.device("cuda")
        (device(type='cpu'), device(type='cpu'))
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.device:
            return self._moved(function(*args, **kwargs))
        kwargs = {name: self._moved(value) for name, value in kwargs.items()}
        return function(*map(self._moved, args), **kwargs)

    def _moved(self, value: Any) -> Any:
        is_cuda = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
        return self.device if is_cuda else value
