"""The update-to-data ratio: how many updates are done, and after which agent steps."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import runs
from runs import configure

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.cli.settings import settle
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers.counters import Counters

SHORT = ["eval.episodes=0", "train.steps=24", "resume=auto"]


class UpdatesAt:
    """Callback that keeps the agent steps at which updates were done, and dies at one of them."""

    def __init__(self, death=None):
        self.death = death
        self.agent_steps = []

    def on_update(self, trainer, metrics):
        self.agent_steps.append(trainer.counters.agent_steps)

    def on_collect(self, trainer, data):
        if self.death is not None and trainer.counters.agent_steps >= self.death:
            raise KeyboardInterrupt


# Updates at the end of the random warm-up, which takes 20 or 21 agent steps, and after each later
# step of all environments
COUNTS = {
    (0.25, 1): [5, 0, 0, 0, 1],
    (1, 1): [20, 1, 1, 1, 1],
    (3, 1): [60, 3, 3, 3, 3],
    (0.25, 3): [7, 1],  # of 30 and 33 agent steps
    (1, 3): [30, 3],
    (3, 3): [90, 9],
}


def updates_at(num_envs, counts):
    first = 20 if num_envs == 1 else 30
    return [first + num_envs * i for i, count in enumerate(counts) for _ in range(count)]


@pytest.mark.parametrize("utd, num_envs", COUNTS)
def test_so_many_updates_follow_each_agent_step_across_a_resume(tmp_path, utd, num_envs):
    expected = updates_at(num_envs, COUNTS[utd, num_envs])
    steps = expected[-1]
    overrides = [f"train.utd={utd}", f"env.num_envs={num_envs}", *SHORT, f"train.steps={steps}"]
    overrides += [f"train.seed_steps={expected[0]}", f"checkpoint.interval={expected[0] + 1}"]
    first, then = UpdatesAt(death=steps), UpdatesAt()
    with pytest.raises(KeyboardInterrupt):
        runs.run(tmp_path, *overrides, callbacks=[first])
    trainer, *_ = runs.run(tmp_path, *overrides, callbacks=[then])
    saved = trainer.resume.stem.split("-")[1]
    assert int(saved) < steps
    assert [at for at in first.agent_steps if at <= int(saved)] + then.agent_steps == expected
    assert trainer.counters.updates == len(expected)


def test_a_decimal_ratio_is_exact_however_long_a_run_is():
    draw = random.Random(0)
    for utd in (0.01, 0.05, 0.29, 0.7, 1.1):
        counters = Counters(utd=utd)
        for _ in range(2_000):
            counters.agent_steps += draw.choice([1, 7, 64])
            counters.updates += counters.updates_due
            exact = Fraction(round(100 * utd), 100) * counters.agent_steps
            assert counters.updates == exact.numerator // exact.denominator


@pytest.mark.parametrize("utd", [0, -1.0, float("nan"), float("inf")])
def test_a_ratio_that_is_none_is_refused(utd):
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=10)
    with pytest.raises(ValueError, match=f"^utd is {utd}; it must be more than 0 and finite.$"):
        OnlineTrainer(task, utd=utd, model={"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16})


@pytest.mark.parametrize(
    "utd, said",
    {
        "0": "a number, more than 0",
        "auto": "a number, more than 0",
        "2000": "at most 1,000",
    }.items(),
)
def test_the_command_line_names_the_setting(utd, said):
    with pytest.raises(ValueError, match=f"^train.utd is .*{utd}.*; it must be {said}.$"):
        settle(configure(f"train.utd={utd}"))


def test_a_resumed_run_keeps_its_ratio():
    begun = Counters(agent_steps=8, updates=4, utd=0.5)
    again = Counters(utd=0.5)
    again.load_state_dict(begun.state_dict())
    assert again == begun
    with pytest.raises(ValueError, match=r"^utd is 1\.0, but 0\.5 in the run to be resumed"):
        Counters().load_state_dict(begun.state_dict())
    state = begun.state_dict()
    del state["utd"]  # as a run saved it before there was a choice
    old = Counters()
    old.load_state_dict(state)
    assert (old.agent_steps, old.updates_due) == (8, 4)
