"""Train TD-MPC2 on a task: ``python examples/tdmpc2_multigamma.py env.task=walker-stand seed=2``.

This is the command ``tdmpc2-train`` with its composition in sight: copy it to use parts of your
own. Every setting stands in ``torchrl_tdmpc/cli/config/tdmpc2_multigamma.yaml``.
"""

from __future__ import annotations

from omegaconf import DictConfig

from torchrl_tdmpc import OnlineTrainer
from torchrl_tdmpc.cli import parts
from torchrl_tdmpc.cli.train import main
from torchrl_tdmpc.envs import Task, seed_generators


def compose(config: DictConfig, task: Task) -> OnlineTrainer:
    """From a configuration and its task to a trainer."""
    seed_generators(config.seed)

    # What is minimised: the loss of world model, Q-functions and policy prior, and with
    # multi_gamma.enabled that of auxiliary value heads, on the same latent rollout
    loss = parts.make_loss(config, task)
    update = parts.make_update(config, loss)

    # What acts, with the same networks, and what it remembers; with collector.mode=async it acts in
    # processes of its own
    planner = parts.make_planner(config, task, loss)
    replay = parts.make_replay(config, task)
    collector = parts.make_collector(config, task, planner)

    # The loop: act, remember, learn; evaluate and save now and then
    return OnlineTrainer(
        task,
        update=update,
        planner=planner,
        replay=replay,
        collector=collector,
        callbacks=parts.make_callbacks(config, update),
        **parts.trainer_settings(config),
    )


if __name__ == "__main__":
    main(compose)
