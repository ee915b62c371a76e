"""Evaluation episodes, and the command that evaluates runs and official checkpoints."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import statistics

import gymnasium
import numpy as np
import pytest
import torch
from runs import TINY, configure, run, without_times
from runs import rows as table
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from test_video import frames
from torchrl.envs import GymWrapper
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_tdmpc.checkpoints import save_checkpoint, save_official
from torchrl_tdmpc.cli import evaluate as command
from torchrl_tdmpc.cli.help import evaluate_help
from torchrl_tdmpc.cli.settings import resolve
from torchrl_tdmpc.envs import env_seeds, load_task, make_env, make_task
from torchrl_tdmpc.envs.gym import InfoReader
from torchrl_tdmpc.trainers import EVALUATION_SEED, OnlineTrainer, evaluate

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
    assert returns == pytest.approx([row["return"] for row in ours], abs=5e-4)
    assert lengths == [row["length"] for row in ours] == [10] * 3
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
        (["checkpoint=checkpoints", "eval=3"], ("eval.interval is not given",)),
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
    assert capsys.readouterr().out == f"{evaluate_help()}\n"


def test_the_traceback_is_shown_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        command.run([f"checkpoint={tmp_path / 'absent'}"])


class Observant(torch.nn.Module):
    """Acts wildly; keeps how it was asked: under which exploration types, for how many at once."""

    def __init__(self):
        super().__init__()
        self.modes = set()
        self.sizes = []

    def forward(self, observation):
        self.modes.add(exploration_type())
        self.sizes.append(len(observation))
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
    rows = evaluate(observant, task, episodes=4, seed=5)
    assert observant.module.sizes == max(row["length"] for row in rows) * [4]
    seeds = np.random.SeedSequence(5).generate_state(4).tolist()
    alone = [task.make(seed).rollout(99, observant) for seed in seeds]
    lengths = [row["length"] for row in rows]
    assert lengths == [len(episode) for episode in alone] and len(set(lengths)) > 1
    expected = [episode["next", "reward"].sum().item() for episode in alone]
    assert [row["return"] for row in rows] == pytest.approx(expected, rel=1e-5)


class Counted(gymnasium.Env):
    """Counts the environments that are open; ends after as many steps as it has made resets."""

    most = opened = 0
    is_open = False

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        if not self.is_open:
            self.is_open = True
            Counted.opened += 1
            Counted.most = max(Counted.most, Counted.opened)
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 7))
        self.count = 0
        return self.seen(), {}

    def seen(self):
        return np.array([self.count, self.length], np.float32)

    def step(self, action):
        self.count += 1
        is_last = self.count == self.length
        info = {"success": self.count % 2 == 0, "contact": {"force": 10.0 * self.count}}
        return self.seen(), float(self.count), is_last, False, info

    def close(self):
        Counted.opened -= self.is_open
        self.is_open = False


@pytest.fixture
def counted_task():
    Counted.most = Counted.opened = 0
    return make_task(Counted, episode_length=9, extra_keys=["success", ("contact", "force")])


@pytest.mark.parametrize(("num_envs", "most"), [(1, 1), (2, 2), (4, 4), (None, 5)])
def test_episodes_are_the_same_in_any_number_of_environments(counted_task, num_envs, most):
    Counted.most = Counted.opened = 0
    rows = evaluate(None, counted_task, episodes=5, num_envs=num_envs, seed=3)
    assert (Counted.most, Counted.opened) == (most, 0)
    lengths = [row["length"] for row in rows]
    assert len(lengths) == 5 and len(set(lengths)) > 2
    for row, length in zip(rows, lengths):
        assert row == {
            "return": length * (length + 1) / 2,
            "length": length,
            "success": float(length % 2 == 0),
            "contact.force": 10.0 * length,
        }
    for seed, length in zip(env_seeds(3, 5), lengths):
        alone = counted_task.make(seed)
        assert alone.reset()["observation"].tolist() == [0, length]
        alone.close()


def test_environments_of_ones_own_are_evaluated_and_left_open(observant):
    task = load_task("gym", "Hopper-v5", episode_length=60)
    env = make_env(task, num_envs=2)
    first = evaluate(observant, env, episodes=3, seed=5)
    assert first == evaluate(observant, env, episodes=3, seed=5) and len(first) == 3
    assert first != evaluate(observant, env, episodes=3, seed=6)
    assert not env.is_closed
    env.close()


def test_a_run_records_what_a_task_brings(counted_task, tmp_path):
    task = dataclasses.replace(counted_task, episodic=True)
    model = {"size": 1, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}
    settings = {"steps": 60, "seed_steps": 55, "eval_episodes": 5, "model": model}
    trainer = OnlineTrainer(task, output_dir=tmp_path, **settings)
    trainer.train()
    training, evaluation = table(tmp_path / "train.csv"), table(tmp_path / "eval.csv")
    assert len(training) > 5
    for row in training:
        assert float(row["success"]) == (int(row["length"]) % 2 == 0)
        assert float(row["contact.force"]) == 10 * int(row["length"])
    seed = 1 + EVALUATION_SEED
    rows = evaluate(trainer.planner, task, episodes=5, seed=seed)
    assert float(evaluation[-1]["success"]) == np.mean([row["success"] for row in rows])
    batch = trainer.replay.sample()["next"]
    assert torch.equal(batch["success"], batch["observation"][..., :1] % 2 == 0)
    assert torch.equal(batch["contact", "force"], 10 * batch["observation"][..., :1])


def test_the_commands_record_and_print_what_a_task_brings(tmp_path, capsys):
    task = "env.task=test_evaluate:Counted"
    settings = ["env.backend=function", task, "env.episode_length=9"]
    _, training, evaluation = run(
        tmp_path, *settings, "env.extra_keys=[success,[contact,force]]", "eval.episodes=4"
    )
    for row in training:
        assert float(row["success"]) == (int(row["length"]) % 2 == 0)
        assert float(row["contact.force"]) == 10 * int(row["length"])
    capsys.readouterr()
    command.run([f"checkpoint={tmp_path}", task])
    header, *rows, summary = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["episode", "return", "length", "success", "contact.force"]
    lengths = [int(row.split()[2]) for row in rows]
    assert [float(row.split()[3]) for row in rows] == [length % 2 == 0 for length in lengths]
    last = evaluation[-1]
    success, force = float(last["success"]), float(last["contact.force"])
    assert summary.endswith(f", success {success:.3g}, contact.force {force:.3g}")


@pytest.mark.parametrize(("key", "is_there"), [("success", True), ("sucess", False)])
def test_a_number_that_no_info_has_is_warned_of(key, is_there, recwarn):
    make_task(Counted, episode_length=9, extra_keys=[key])
    told = [str(one.message) for one in recwarn if "extra_keys" in str(one.message)]
    assert len(told) == (0 if is_there else 1)
    if not is_there:
        assert "no 'sucess' in their info, which has contact, success;" in told[0]


def test_an_extra_entry_is_one_number():
    with pytest.raises(
        ValueError, match=r"shape \(2,\); an entry in extra_keys must be one number"
    ):
        make_task(
            lambda: GymWrapper(Counted()),
            episode_length=9,
            observation_keys=["observation"],
            extra_keys=["observation"],
        )


def test_an_info_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="info has 'yes' for 'success'; it must be one number"):
        InfoReader(["success"])({"success": "yes"}, TensorDict())


def test_evaluations_leave_no_descriptors():
    task = load_task("dmcontrol", "cartpole-swingup", episode_length=2)
    evaluate(None, task, episodes=2, seed=0)
    gc.disable()  # what the oldest generation would find some day must be closed today
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            evaluate(None, task, episodes=2, seed=0)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()
