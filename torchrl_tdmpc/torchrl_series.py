"""What TorchRL has no public name for, and what its series name differently."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import BaseCollector, Collector, MultiCollector
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv
from torchrl.objectives import LossModule


def carried_data(collector: Collector) -> TensorDictBase | None:
    """What a collector carries from one step to the next: observations, warm start, trajectory ids.

    Args:
        collector: in this process.

    Returns:
        The collector's own; an update of it is what the next step reads.
        None if this series of TorchRL keeps it elsewhere or leaves a part of it out, so that a run
        cannot go on from it.
    """
    carried = getattr(collector, "_carrier", None)  # 0.14, and the nightlies before 0.15
    if not isinstance(carried, TensorDictBase):
        return None
    env = collector.env
    specs = (env.full_observation_spec, env.full_done_spec, env.full_state_spec)
    needed = {key for spec in specs for key in spec.keys(True, True)}
    if collector.track_traj_ids:
        needed.add(("collector", "traj_ids"))
    return carried if needed <= set(carried.keys(True, True)) else None


def made_of(items: dict[str, Any], like: TensorDictBase) -> TensorDict:
    """A TensorDict of entries that fit, of another's batch size and device, without the checks.

    They take several times as long as copies of a few small tensors.

    Args:
        items: tensors and TensorDicts.
        like: has the batch size and the device.
    """
    return TensorDict._new_unsafe(items, like.batch_size, device=like.device)


def serial_envs(env: SerialEnv) -> list[EnvBase]:
    """The environments that are stepped one after the other in this process."""
    return env._envs


def worker_processes(env: EnvBase | BaseCollector) -> Sequence[BaseProcess]:
    """The processes of environments that step side by side; none in this one or in a cluster's."""
    if isinstance(env, MultiCollector):
        return env.procs if "procs" in vars(env) else ()
    # Not by getattr, which a batch of environments would pass on to each of them
    is_started = isinstance(env, ParallelEnv) and "_workers" in vars(env)
    return env._workers if is_started else ()


def num_frames(collector: Collector | MultiCollector) -> int:
    """How many agent steps a collector has given."""
    return collector._frames


def set_num_frames(collector: Collector | MultiCollector, frames: int) -> None:
    """Go on counting from there, and with random steps if they are not over."""
    collector._frames = frames


def wrapped_env(env: EnvBase) -> Any:
    """What a wrapper of TorchRL was given: an environment of Gymnasium or dm_control."""
    return env._env


def tell_targets_move(loss: LossModule) -> None:
    """Tell a loss that something moves its targets; of others it warns when it is computed."""
    for name in loss._has_update_associated:
        loss._has_update_associated[name] = True
