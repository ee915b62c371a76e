"""Evaluation episodes, and the command that evaluates runs and official checkpoints."""

from __future__ import annotations

import re
import statistics

import numpy as np
import pytest
import torch
from runs import TINY, configure, run, without_times
from tensordict.nn import TensorDictModule
from test_video import frames
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_tdmpc.checkpoints import save_checkpoint, save_official
from torchrl_tdmpc.cli import evaluate as command
from torchrl_tdmpc.cli.settings import resolve
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers import EVALUATION_SEED, evaluate

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that records videos: its folder, trainer and tables."""
    output_dir = tmp_path_factory.mktemp("watched")
    return output_dir, *run(output_dir, "eval.video=true", "eval.interval=20")


def printed(capsys, *arguments):
    """What the command prints: returns, lengths, mean and standard deviation, and the last line."""
    command.run([str(argument) for argument in arguments])
    lines = capsys.readouterr().out.strip().splitlines()
    episodes = [line.split() for line in lines if re.match(r" +\d+ ", line)]
    assert [int(number) for number, *_ in episodes] == list(range(1, len(episodes) + 1))
    summary = next(line for line in lines if "mean" in line)
    mean, deviation = re.search(r"mean (\S+), standard deviation (\S+)", summary).groups()
    returns = [float(value) for _, value, _ in episodes]
    lengths = [int(length) for *_, length in episodes]
    return returns, lengths, float(mean), float(deviation), lines[-1]


def test_each_evaluation_has_a_video_and_training_is_as_without(watched, tmp_path):
    output_dir, _, table, evaluations = watched
    videos = sorted((output_dir / "videos").iterdir())
    assert [path.name for path in videos] == ["000000000040.mp4", "000000000080.mp4"]
    assert [len(frames(path)) for path in videos] == [11, 11]
    plain = run(tmp_path, "eval.interval=20")
    assert without_times(plain[1]) == without_times(table)
    assert without_times(plain[2]) == without_times(evaluations)
    assert not (tmp_path / "videos").exists()


def test_a_run_is_evaluated(watched, capsys):
    output_dir, trainer, _, evaluations = watched
    returns, lengths, mean, deviation, _ = printed(
        capsys, f"checkpoint={output_dir}", "eval.episodes=3"
    )
    task = resolve(configure())[1]
    seed = 1 + EVALUATION_SEED
    ours = evaluate(trainer.planner, task, episodes=3, seed=seed)
    assert returns == pytest.approx(ours[0], abs=5e-4) and lengths == ours[1] == [10] * 3
    assert mean == pytest.approx(statistics.fmean(returns), abs=1e-3)
    assert deviation == pytest.approx(statistics.pstdev(returns), abs=1e-3)
    assert list(output_dir.glob("*.mp4")) == []

    # With the run's own number of episodes, the numbers of its last evaluation
    *_, mean, deviation, _ = printed(capsys, f"checkpoint={output_dir}/checkpoints")
    assert mean == pytest.approx(float(evaluations[-1]["reward"]), abs=5e-4)
    assert deviation == pytest.approx(float(evaluations[-1]["reward_std"]), abs=5e-4)


def test_an_official_checkpoint_is_evaluated_and_filmed(watched, capsys, tmp_path):
    output_dir, trainer, *_ = watched
    checkpoint = max((output_dir / "checkpoints").glob("*.torchrl"))
    own = printed(capsys, f"checkpoint={checkpoint}")
    save_official(tmp_path / "agent.pt", trainer.update.loss)
    settings = [setting for setting in TINY if not setting.startswith("model.")]
    official = printed(capsys, f"checkpoint={tmp_path}/agent.pt", "video=true", *settings)
    assert official[:4] == own[:4]
    assert official[4] == f"video of episode 1: {tmp_path}/agent.mp4"
    assert len(frames(tmp_path / "agent.mp4")) == official[1][0] + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("checkpoint is given 0 times",)),
        (["checkpoint=absent"], ("absent", "does not exist")),
        (["checkpoint=absent.pt"], ("env.task is not given", "absent.pt")),
        (["checkpoint=absent.pt", "env.task=walker-stand"], ("No such file", "absent.pt")),
        (["checkpoint=agent.pt", "env.task=walker-stand"], ("[5]", "[24] and 6", "walker-stand")),
        (["checkpoint=agent.pt", "env.task=walker-stnd"], ("walker-stnd", "walker-stand")),
        (["checkpoint=agent.pt", "env.task=walker-stand", "model.size=5"], ("model.size", "vmin")),
        (["checkpoint=checkpoints", "device=cuda:99"], ("device is 'cuda:99'", "auto, cpu")),
        (["checkpoint=bare"], ("bare carries no configuration",)),
        (["checkpoint=checkpoints", "eval.episodes=0"], ("eval.episodes is 0",)),
        (["checkpoint=checkpoints", "video=maybe"], ("eval.video", "maybe", "true or false")),
        (["checkpoint=checkpoints", "eval.epsiodes=2"], ("eval.epsiodes", "mean eval.episodes?")),
        (["checkpoint=checkpoints", "~eval.episodes"], ("~eval.episodes would remove a setting",)),
        (["checkpoint=checkpoints", "eval.episodes"], ("eval.episodes is no setting", "KEY=VALUE")),
        (["checkpoint=checkpoints", "eval=3"], ("eval is 3",)),
        (["checkpoint=checkpoints", "seed=["], ("seed=[ cannot be read as settings",)),
        (["checkpoint="], ("checkpoint is ''",)),
        (
            ["checkpoint=checkpoints", "env.task=walker-stand"],
            ("[5] and acts with 1", "[24] and 6"),
        ),
        (["checkpoint=checkpoints", "model.size=5", "model.num_q=5"], ("[2, ", "[5, ", "differ")),
        (["checkpoint=checkpoints", "model.latent_dim=24"], ("component 'loss'",)),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(watched, arguments, words, monkeypatch):
    output_dir, trainer, *_ = watched
    save_official(output_dir / "agent.pt", trainer.update.loss)
    save_checkpoint(output_dir / "bare", 1, {"loss": trainer.update.loss})
    monkeypatch.chdir(output_dir)
    with pytest.raises(SystemExit) as error:
        command.run(arguments)
    message = str(error.value)
    assert message.startswith("error: ") and all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (
            {"backend": "function", "task": "somebody:run"},
            ("env.task=somebody:run", "module someb"),
        ),
        (
            {"backend": "gym", "task": "somebody:Id-v1"},
            ("env.task=somebody:Id-v1", "module somebo"),
        ),
        ({"task": "${oc.env:HOME}"}, ("the configuration in", "none that a run writes")),
    ],
)
def test_no_code_runs_because_a_checkpoint_says_so(tmp_path, env, words, monkeypatch):
    (tmp_path / "somebody.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nrun = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    metadata = {"agent_steps": 1, "config": {"env": env}}
    path = save_checkpoint(tmp_path, 1, {}, metadata=metadata)
    with pytest.raises(SystemExit) as error:
        command.run([f"checkpoint={path}"])
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message
    assert not (tmp_path / "imported").exists()
    if env.get("backend") == "function":  # who names it, means it
        with pytest.raises(SystemExit, match="somebody has no 'run'"):
            command.run([f"checkpoint={path}", "env.task=somebody:run"])
        assert (tmp_path / "imported").exists()


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_shown(option, capsys):
    command.run([option])
    assert "tdmpc2-evaluate checkpoint=PATH" in capsys.readouterr().out


def test_the_traceback_is_shown_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        command.run([f"checkpoint={tmp_path / 'absent'}"])


class Observant(torch.nn.Module):
    """Acts wildly, and keeps the exploration types that it acts under."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def forward(self, observation):
        self.modes.add(exploration_type())
        return torch.sin(1e4 * observation[..., :3])


@pytest.fixture
def observant():
    return TensorDictModule(Observant(), in_keys=["observation"], out_keys=["action"])


def test_an_evaluation_does_not_explore(observant):
    task = load_task("gym", "Hopper-v5", episode_length=3)
    evaluate(observant, task, episodes=2, seed=5)
    assert observant.module.modes == {ExplorationType.DETERMINISTIC}


def test_each_episode_counts_up_to_its_own_end(observant):
    task = load_task("gym", "Hopper-v5", episode_length=60)
    returns, lengths = evaluate(observant, task, episodes=4, seed=5)
    seeds = np.random.SeedSequence(5).generate_state(4).tolist()
    alone = [task.make(seed).rollout(99, observant) for seed in seeds]
    assert lengths == [len(episode) for episode in alone] and len(set(lengths)) > 1
    expected = [episode["next", "reward"].sum().item() for episode in alone]
    assert returns == pytest.approx(expected, rel=1e-5)
