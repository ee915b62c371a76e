"""What a run records: a row for each training episode, and one for each evaluation."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_tdmpc.modules import SymlogTwoHot
from torchrl_tdmpc.recording.memory import peak_memory_mib

__all__ = ["EVAL_COLUMNS", "RunRecord"]

COUNTS = ("skipped_updates",)  # metrics that a row adds up; it averages the others
LARGEST = ("largest_reward", "largest_td_target")  # metrics of which a row has the largest
TRAIN_COLUMNS = ("step", "agent_steps", "episode", "return", "length")
COST_COLUMNS = ("ms_per_step", "peak_memory_mib", "seconds")
EVAL_COLUMNS = (
    "step",
    "reward",
    "seed",
    "reward_std",
    "episodes",
    "length",
    "agent_steps",
    "seconds",
)


class RunRecord:
    """Makes the rows of one run; callbacks write them where they belong.

    Metrics stay tensors on their device until a row needs their averages. The clock starts with the
    object, so build it right before the loop.

    Args:
        metrics: Names of the scalars that :meth:`update` receives: columns of a training row from
            the first update on.
        extra: Names of further numbers of an episode, such as ``success``.
        seed: The run's, written into every evaluation row.
        device: Whose peak memory is reported: of the process on the CPU, of PyTorch on CUDA.
        bins: The support that codes a scalar, by the scalar's name: ``reward``, ``td_target``. The
            first row whose ``clipped_*`` metric of that name is not 0 warns of it.

    Raises:
        ValueError: If a metric is named like another column.

    Attributes:
        train_columns: The columns of a training row.
        eval_columns: The columns of an evaluation row.

    Examples:
        >>> from tensordict import TensorDict
        >>> record = RunRecord(["loss_value"], seed=1)
        >>> record.update(TensorDict(loss_value=torch.tensor(0.5)))
        >>> record.update(TensorDict(loss_value=torch.tensor(1.0)))
        >>> row = record.episodes(step=1000, agent_steps=500, returns=[12.5], lengths=[500])[0]
        >>> row["return"], row["loss_value"]
        (12.5, 0.75)
    """

    def __init__(
        self,
        metrics: Sequence[str] = (),
        *,
        extra: Sequence[str] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        bins: Mapping[str, SymlogTwoHot] | None = None,
    ):
        if taken := set(metrics) & {*TRAIN_COLUMNS, *COST_COLUMNS}:
            raise ValueError(f"metrics {sorted(taken)} are named like other columns of train.csv")
        if taken := set(extra) & {*TRAIN_COLUMNS, *metrics, *COST_COLUMNS, *EVAL_COLUMNS}:
            raise ValueError(f"extra_keys {sorted(taken)} are named like other columns of a row.")
        self.metrics = tuple(metrics)
        self.extra = tuple(extra)
        self.train_columns = (*TRAIN_COLUMNS, *self.extra, *self.metrics, *COST_COLUMNS)
        self.eval_columns = (*EVAL_COLUMNS, *self.extra)
        self.seed = seed
        self.device = torch.device(device)
        self._unwarned = dict(bins or {})
        self._episode = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._start = time.perf_counter()
        self._paused = 0.0
        self._last_step, self._last_active = 0, 0.0

    def update(self, metrics: TensorDictBase) -> None:
        """Add one update's metrics to the averages of the next row, without synchronising.

        Numbers that are NaN or infinite are left out of an average that has others: such an update
        is skipped, and ``skipped_updates`` counts it.

        Args:
            metrics: Scalar tensors, all declared in the constructor; absent ones do not count.

        Raises:
            ValueError: If a metric was not declared or is not a scalar.
        """
        for name, value in metrics.items():
            if name not in self.metrics:
                raise ValueError(
                    f"metric {name!r} has no column; name it in the out_keys of its loss, or in "
                    "the metric_names of its callback."
                )
            if value.numel() != 1:
                raise ValueError(f"metric {name!r} has shape {list(value.shape)}, not a scalar's")
            value = value.detach().reshape(()).to(self.device, torch.float32)
            finite = value.isfinite()
            value = torch.where(finite, value, 0.0)
            before = self._sums.get(name, torch.zeros_like(value))
            self._sums[name] = torch.maximum(before, value) if name in LARGEST else before + value
            self._counts[name] = self._counts.get(name, 0.0) + finite

    def episodes(
        self,
        *,
        step: int,
        agent_steps: int,
        returns: Sequence[float],
        lengths: Sequence[int],
        extra: Mapping[str, Sequence[float]] = MappingProxyType({}),
    ) -> list[dict[str, Any]]:
        """A row for every episode that ended in one vector step.

        Metrics are averages over the updates since the last call, and milliseconds are averages
        over the environment steps since then; both are shared by the rows of one call. A call
        without episodes changes nothing.

        Args:
            step: Environment steps so far, action repeat counted.
            agent_steps: Actions chosen so far, summed over environments.
            returns: Undiscounted return of each episode.
            lengths: Agent steps in each episode.
            extra: Further numbers of each episode, by their names.

        Returns:
            The rows; a column without a value is absent.
        """
        if not len(returns):
            return []
        averages = self._take_averages()
        self._warn_of_clipping(averages)
        shared = {"step": step, "agent_steps": agent_steps, **averages}
        if (ms_per_step := self._take_ms_per_step(step)) is not None:
            shared["ms_per_step"] = ms_per_step
        shared |= self._costs()
        rows = []
        for index, (episode_return, length) in enumerate(zip(returns, lengths, strict=True)):
            self._episode += 1
            own = {"episode": self._episode, "return": float(episode_return), "length": int(length)}
            own |= {name: float(values[index]) for name, values in extra.items()}
            rows.append({**shared, **own})
        return rows

    def evaluation(
        self,
        *,
        step: int,
        agent_steps: int,
        returns: Sequence[float],
        lengths: Sequence[int],
        extra: Mapping[str, Sequence[float]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The row of one evaluation.

        Args:
            step: Environment steps trained so far, action repeat counted.
            agent_steps: Actions chosen in training so far, summed over environments.
            returns: Undiscounted return of each evaluation episode, at least one.
            lengths: Agent steps in each of them.
            extra: Further numbers of each of them, by their names.

        Returns:
            The row: ``reward`` is the mean return, ``reward_std`` its standard deviation over the
            episodes (0 for one), ``length`` their mean length, as the further numbers are means.
        """
        returns = torch.as_tensor(returns, dtype=torch.float64)
        means = {name: torch.as_tensor(v, dtype=torch.float64) for name, v in extra.items()}
        return {
            "step": step,
            "reward": returns.mean().item(),
            "seed": self.seed,
            "reward_std": returns.std(correction=0).item(),
            "episodes": len(returns),
            "length": torch.as_tensor(lengths, dtype=torch.float64).mean().item(),
            "agent_steps": agent_steps,
            "seconds": self._seconds(),
            **{name: values.mean().item() for name, values in means.items()},
        }

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the time spent inside (evaluation, checkpoints) out of ``ms_per_step``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """What the next row averages, and how long the run took so far."""
        return {
            "episode": self._episode,
            "sums": self._sums,
            "counts": self._counts,
            "seconds": self._seconds(),
            "paused": self._paused,
            "last": (self._last_step, self._last_active),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._episode = state["episode"]
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self._counts = {name: value.to(self.device) for name, value in state["counts"].items()}
        self._start = time.perf_counter() - state["seconds"]
        self._paused = state["paused"]
        self._last_step, self._last_active = state["last"]

    def _costs(self) -> dict[str, float]:
        return {"peak_memory_mib": peak_memory_mib(self.device), "seconds": self._seconds()}

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    def _take_averages(self) -> dict[str, float]:
        """Average every metric since the last call: the one place that waits for the device."""
        if not self._sums:
            return {}
        both = torch.stack([*self._sums.values(), *self._counts.values()]).reshape(2, -1)
        averages = {
            name: total if name in (*COUNTS, *LARGEST) else total / count if count else math.nan
            for name, total, count in zip(self._sums, *both.tolist(), strict=True)
        }
        self._sums, self._counts = {}, {}
        return averages

    def _warn_of_clipping(self, averages: Mapping[str, float]) -> None:
        """Say once of each scalar that it left its bins, how far, and what to set."""
        for name, bins in list(self._unwarned.items()):
            if averages.get(f"clipped_{name}", 0.0) > 0:
                del self._unwarned[name]
                low, high = bins.ends
                largest = averages[f"largest_{name}"]
                end = math.ceil(math.log1p(largest))
                warnings.warn(
                    f"{name.replace('_', ' ')}s reach {largest:.4g} in magnitude, but the bins end "
                    f"at {low:.4g} and {high:.4g} and code what lies beyond as their end: set "
                    f"vmin to {-end} and vmax to {end}, or scale the rewards.",
                    stacklevel=3,
                )

    def _take_ms_per_step(self, step: int) -> float | None:
        """Milliseconds of unpaused time per environment step since the last call."""
        active = self._seconds() - self._paused
        steps, elapsed = step - self._last_step, active - self._last_active
        self._last_step, self._last_active = step, active
        return 1000.0 * elapsed / steps if steps else None
