"""A model of several tasks that an online run on one task begins with."""

from __future__ import annotations

import pytest
import torch
from runs import configure, configure_offline, make_offline, run, stored_walks
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import OnlineTrainer, TDMPC2Loss, TDMPC2Update, load_agent
from torchrl_tdmpc.checkpoints import save_official
from torchrl_tdmpc.cli import dataset
from torchrl_tdmpc.cli import evaluate as command
from torchrl_tdmpc.cli.modes import settle_run
from torchrl_tdmpc.cli.parts import make_trainer
from torchrl_tdmpc.data import EpisodeFiles
from torchrl_tdmpc.envs import load_task
from torchrl_tdmpc.trainers import (
    Pretrained,
    build_networks,
    discount_heuristic,
    evaluate,
    load_pretrained,
    place_in_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
KNOWN = ("env.backend=function", "env.task=walks:car", "env.episode_length=null")
NEW = ("env.task=pendulum-swingup", "env.episode_length=6")
NAMES = "env.tasks=[walks:pendulum,walks:car]"
TABLES = "world_model_params.task_context."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a run on two tasks, and its trainer."""
    folder = tmp_path_factory.mktemp("model")
    data = stored_walks(tmp_path_factory.mktemp("data"))
    settings = (f"output_dir={folder}", f"data={data}", "eval.episodes=0", "train.steps=8")
    trainer = make_offline(configure_offline(*settings, "model.task_dim=7", "model.num_q=3"))
    trainer.callbacks.append(Scale())
    trainer.train()
    return folder, trainer


class Scale:
    """Gives the value scale a number that tells it from a new one."""

    def on_update(self, trainer, metrics):
        trainer.update.loss.value_scale.value.fill_(2.5)


@pytest.fixture(scope="module", params=["run", "official"])
def source(request, model, tmp_path_factory):
    """The same model as a run and as an official file, and the setting that names its tasks."""
    if request.param == "run":
        return model[0], ()
    path = tmp_path_factory.mktemp("official") / "agent.pt"
    save_official(path, model[1].update.loss)
    return path, (NAMES,)


def begin(path, output_dir, *settings):
    """The trainer of a run that begins with a model."""
    config = configure(f"resume={path}", f"output_dir={output_dir}", *settings)
    return make_trainer(*settle_run(config))


def refuse_other_weights(ours, theirs):
    """Compare all but the tables of the tasks, and the scale that an official file lacks."""
    ours, theirs = (loss.state_dict() for loss in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        if not name.startswith((TABLES, "value_scale")):
            assert torch.equal(ours[name], weight), name


def test_a_known_task_is_planned_for_as_before(model, source, tmp_path):
    trainer = begin(source[0], tmp_path, *KNOWN, *source[1])
    assert (trainer.task.index, trainer.task.observation_shape) == (1, (3,))
    ours, theirs = trainer.update.loss, model[1].update.loss
    refuse_other_weights(ours, theirs)
    for name, table in theirs.world_model.task_context.named_parameters():
        assert torch.equal(getattr(ours.world_model.task_context, name), table)
    assert float(ours.value_scale.value) == (1 if source[1] else 2.5)
    data = TensorDict(
        observation=torch.tensor([[0.3, -0.4, 0.0]]),
        task=torch.tensor([[1]]),
        _previous_mean=torch.zeros(1, 3, 1),
        batch_size=1,
    )
    plans = []
    for planner in (trainer.planner, model[1].planner):
        torch.manual_seed(0)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            plans.append(planner(data.clone())["next", "_previous_mean"])
    assert torch.equal(*plans) and plans[0].abs().max() > 0
    found = evaluate(trainer.planner, trainer.task, episodes=2, seed=3)
    assert found == evaluate(model[1].planner, model[1].task.padded[1], episodes=2, seed=3)


def test_a_new_task_gets_a_row(model, source, tmp_path):
    trainer = begin(source[0], tmp_path, *NEW, *source[1])
    assert trainer.task.index == 2
    assert trainer.task.model_tasks.names == ("walks:pendulum", "walks:car", "pendulum-swingup")
    refuse_other_weights(trainer.update.loss, model[1].update.loss)
    ours = trainer.update.loss.world_model.task_context
    for name, table in model[1].update.loss.world_model.task_context.named_parameters():
        grown = getattr(ours, name)
        assert torch.equal(grown[:2], table) and len(grown) == 3, name
    before = ours.embedding.detach().clone()
    assert 0 < before[2].abs().max() <= 0.02 and before[2].unique().numel() == 7
    assert ours.action_masks[2].tolist() == [1]
    assert float(ours.discounts[2]) == pytest.approx(discount_heuristic(6, 0.995))
    trainer.train()
    assert trainer.counters.updates == 40
    assert torch.equal(ours.embedding[:2], before[:2])
    assert ((ours.embedding[2] - before[2]).abs() > 0).all()


def test_what_the_run_collects_is_padded_and_its_own(model, tmp_path):
    trainer = begin(model[0], tmp_path, *KNOWN)
    assert not trainer.update.model_optimizer.state  # of the earlier run
    assert not trainer.collector.init_random_frames and trainer.seed_steps == 20
    trainer.train()
    stored = trainer.replay.written(0)
    assert (stored["task"] == 1).all() and not stored["observation"][:, 2].any()
    assert stored["observation"][:, :2].any() and len(stored) == 8 * 6
    embedding = trainer.update.loss.world_model.task_context.embedding
    context = trainer.update.loss.context(trainer.replay.sample())
    assert torch.equal(context.embedding[0], embedding[1])


def test_such_a_run_is_resumed_evaluated_and_exported(model, tmp_path, capsys):
    whole, _, evaluations = run(tmp_path / "whole", f"resume={model[0]}", *NEW)
    run(tmp_path / "part", f"resume={model[0]}", *NEW, "train.steps=25")
    resumed, *_ = run(tmp_path / "part", f"resume={tmp_path / 'part'}", *NEW)
    assert resumed.counters.agent_steps == 40 and resumed.resume is not None
    ours, theirs = resumed.update.loss.state_dict(), whole.update.loss.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())

    command.run([f"checkpoint={tmp_path / 'whole'}"])
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f"pendulum-swingup: mean {float(evaluations[-1]['reward']):.3f}")
    with pytest.raises(SystemExit, match=r"is of the tasks walks:pendulum, .*; env.task is car"):
        command.run([f"checkpoint={tmp_path / 'whole'}", "env.task=cartpole-swingup"])

    agent = load_agent(tmp_path / "whole")
    actions = []
    for task in (None, "pendulum-swingup"):
        torch.manual_seed(0)
        agent.reset()
        actions.append(agent.act(torch.tensor([0.1, 0.2, 0.3]), task=task, explore=True))
    assert torch.equal(*actions)

    dataset.main(["export", str(tmp_path / "whole"), str(tmp_path / "data")])
    files = EpisodeFiles(tmp_path / "data")
    assert files.tasks == ["pendulum-swingup"] and files.num_episodes == 6
    stored = whole.replay.written(0)
    assert torch.equal(next(iter(files))["next", "observation"], stored["observation"][1:7])


def test_stored_episodes_of_the_task_alone_are_padded(model, tmp_path):
    data = stored_walks(tmp_path).parent / "walks:car"
    loaded = begin(model[0], tmp_path / "run", *KNOWN, f"replay.load={data}")
    stored, alone = loaded.replay.written(0), next(iter(EpisodeFiles(data)))
    assert torch.equal(stored["observation"][1:6, :2], alone["next", "observation"])
    assert not stored["observation"][:, 2].any() and (stored["task"] == 1).all()


def test_from_python(model, tmp_path):
    pretrained = Pretrained.read(model[0])
    task = place_in_model(load_task("gym", "Pendulum-v1", episode_length=6), pretrained.tasks)
    loss = TDMPC2Loss(*build_networks(task, pretrained.model))
    load_pretrained(pretrained.path, loss, task.model_tasks)
    refuse_other_weights(loss, model[1].update.loss)
    settings = {"steps": 14, "seed_steps": 12, "eval_episodes": 0, "model": pretrained.model}
    trainer = OnlineTrainer(task, update=TDMPC2Update(loss), output_dir=tmp_path, **settings)
    trainer.planner.num_elites = 8
    trainer.planner.num_samples = 32
    trainer.train()
    assert load_agent(tmp_path).task == "Pendulum-v1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["env.task=cup-catch"], "env.task cup-catch observes 8 numbers and acts with 2; the mode"),
        ([*KNOWN, "env.pixels=true"], "env.pixels is true; "),
        ([*KNOWN, "multi_gamma.enabled=true"], "multi_gamma.enabled is true; "),
        ([*KNOWN, "env.episodic=true"], "which predicts no terminations"),
        ([*KNOWN, "model.num_q=4"], "model.num_q is 4, but 3 in "),
        ([*KNOWN, "model.task_dim=9"], "model.task_dim is 9, which has no effect with mode=online"),
        ([*KNOWN, "loss.discount=0.9"], "discount is 0.9; it must be None, because the world mode"),
        ([*KNOWN, "env.tasks=[cup-catch]"], "env.tasks is ['cup-catch'], which has no effect with"),
        ([*KNOWN, "train.seed_steps=3"], "train.seed_steps is 3; it must be auto or at least 5"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(model, tmp_path, settings, words):
    with pytest.raises(ValueError) as error:
        begin(model[0], tmp_path, *settings)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], r"env.tasks is null; .*agent.pt does not name its tasks, so env.tasks must"),
        (["env.tasks=[walks:car]"], r"tasks is 1 tasks; it must name the 2 tasks of .*agent.pt"),
        (["env.tasks=[walks:car,cup-catch]"], r"agent.pt observes 3 numbers and acts with \[1, 1"),
        ([NAMES, "model.enc_dim=5"], r"model.enc_dim is 5, but 16 in .*agent.pt; leave it out"),
    ],
)
def test_an_official_file_needs_its_tasks(model, tmp_path, settings, words):
    save_official(tmp_path / "agent.pt", model[1].update.loss)
    with pytest.raises(ValueError, match=words):
        begin(tmp_path / "agent.pt", tmp_path / "run", *KNOWN, *settings)
