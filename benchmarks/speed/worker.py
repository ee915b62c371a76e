"""One measurement in a process of its own; its last line of output is JSON.

``python -m benchmarks.speed.worker compute --who ours --size 5 --setting default-bfloat16``
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
import torchrl
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from benchmarks.speed.contender import (
    ACTION,
    BATCH,
    HORIZON,
    OBSERVATION,
    Contender,
    make_batch,
    planner_input,
)

WARM_UP = 2  # calls that are not counted: the first compiles
EPISODE = 500  # agent steps of an episode in the replay buffer
LOOP_EPISODE = 100  # and in the loop, whose random warm-up is one of them
LOOP_WARM_UP = 20  # agent steps of the loop that are not counted


def time_alternating(
    functions: dict[str, Callable], repeats: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Milliseconds of each call, the functions taking turns so that drift meets all of them."""
    milliseconds = {name: [] for name in functions}
    for call in range(-warm_up, repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if call >= 0:
                milliseconds[name].append(1e3 * (time.perf_counter() - start))
    return milliseconds


def compute(contender: Contender, envs: list[int], repeats: int, **kwargs) -> dict:
    """Plan for so many environments, and update, by turns."""
    planner, batch = contender.planner, make_batch()
    inputs = {f"plan {num_envs}": planner_input(planner, num_envs) for num_envs in envs}
    functions = {name: partial(planner, data) for name, data in inputs.items()}
    functions["update"] = partial(contender.update, batch)
    with set_exploration_type(ExplorationType.RANDOM):
        times = time_alternating(functions, repeats, **kwargs)
    return {**times, "parameters": [contender.parameters]}


def heads(size: int, setting: str, repeats: int) -> dict:
    """Update without and with five auxiliary value heads, by turns."""
    ours = importlib.import_module("benchmarks.speed.ours")
    batch, plain = make_batch(), ours.make(size, setting).update
    with_heads, parameters = ours.make_update_with_heads(size, setting)
    functions = {"plain": partial(plain, batch), "with heads": partial(with_heads, batch)}
    return {**time_alternating(functions, repeats), "parameters": [parameters]}


def memory(contender: Contender, num_envs: int) -> dict:
    """Peak memory of this process in MiB, after a few plans and updates."""
    data, batch = planner_input(contender.planner, num_envs), make_batch()
    with set_exploration_type(ExplorationType.RANDOM):
        for _ in range(3):
            contender.planner(data)
            contender.update(batch)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {f"memory {num_envs}": [kibibytes / 1024]}


def replay(transitions: int, repeats: int) -> dict:
    """Write one agent step and draw one batch, again and again, in a buffer that is full.

    ``repeats`` episodes of 500 agent steps: the mean includes what the end of an episode costs.
    """
    from torchrl_tdmpc.data import EpisodeReplay

    buffer = EpisodeReplay(capacity=transitions, horizon=HORIZON, batch_size=BATCH)
    observation = torch.randn(1, EPISODE + 1, OBSERVATION)
    episode = TensorDict(
        observation=observation[:, :-1],
        action=torch.rand(1, EPISODE, ACTION),
        next=TensorDict(
            observation=observation[:, 1:],
            reward=torch.rand(1, EPISODE, 1),
            terminated=torch.zeros(1, EPISODE, 1, dtype=torch.bool),
            done=(torch.arange(1, EPISODE + 1) == EPISODE).reshape(1, EPISODE, 1),
        ),
    ).auto_batch_size_(2)
    while buffer.num_transitions < transitions:
        buffer.extend(episode)
    following = itertools.cycle(episode.split(1, 1))

    def write_and_sample() -> None:
        buffer.extend(next(following))
        buffer.sample()

    name = f"replay {transitions}"
    times = time_alternating({name: write_and_sample}, repeats * EPISODE, warm_up=EPISODE)[name]
    return {name: [sum(times) / len(times)], f"{name} longest": [max(times)]}


def loop(setting: str, agent_steps: int) -> dict:
    """Agent steps per second of the example on cartpole-swingup, after its pretraining.

    From one update to the next lie the update, the planner's agent step, the environment's steps,
    the write and the logging, episode ends among them; evaluations and checkpoints do not.
    """
    from hydra import compose, initialize_config_dir

    from torchrl_tdmpc.cli.parts import make_trainer
    from torchrl_tdmpc.cli.settings import DEFAULTS, settle

    compiled, precision = setting.split("-")
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "device=cpu",
            f"compile='{compiled}'",
            f"precision={precision}",
            f"output_dir={folder}/run",
            "env.task=cartpole-swingup",
            f"env.episode_length={LOOP_EPISODE}",
            f"train.seed_steps={LOOP_EPISODE}",
            f"train.steps={LOOP_EPISODE + LOOP_WARM_UP + agent_steps}",
            "model.size=1",
            "eval.episodes=0",
            "checkpoint.interval=1000000",
        ]
        with initialize_config_dir(str(DEFAULTS.parent), version_base="1.3"):
            trainer = make_trainer(*settle(compose(DEFAULTS.stem, overrides)))
        sampled, sample = [], trainer.replay.sample

        def stamped_sample() -> TensorDict:
            sampled.append(time.perf_counter())
            return sample()

        trainer.replay.sample = stamped_sample  # once for each update
        trainer.train()
    # The last update of the pretraining begins the first agent step that learns
    begin = sampled[LOOP_EPISODE - 1 + LOOP_WARM_UP]
    return {"loop": [agent_steps / (sampled[-1] - begin)]}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("compute", "heads", "memory", "replay", "loop"))
    parser.add_argument("--who", choices=("ours", "peer"), default="ours")
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--setting", default="off-float32")
    parser.add_argument("--envs", type=int, nargs="+", default=[1])
    parser.add_argument("--transitions", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    def make() -> Contender:
        library = importlib.import_module(f"benchmarks.speed.{arguments.who}")
        return library.make(arguments.size, arguments.setting)

    measurements = {
        "compute": lambda: compute(make(), arguments.envs, arguments.repeats),
        "heads": lambda: heads(arguments.size, arguments.setting, arguments.repeats),
        "memory": lambda: memory(make(), arguments.envs[0]),
        "replay": lambda: replay(arguments.transitions, arguments.repeats),
        "loop": lambda: loop(arguments.setting, arguments.repeats),
    }
    values = measurements[arguments.what]()
    versions = f"torchrl {torchrl.__version__}, torch {torch.__version__}"
    machine = {"threads": torch.get_num_threads(), arguments.who: versions}
    print(json.dumps({"values": values, "machine": machine}))


if __name__ == "__main__":
    main()
