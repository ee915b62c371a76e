"""A model of several tasks that learns from stored episodes, from Python and the command line."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from runs import (
    TINY_OFFLINE,
    configure,
    configure_offline,
    make_offline,
    rows,
    stored_walks,
    without_times,
)

from torchrl_tdmpc import OfflineTrainer, TDMPC2Loss, TDMPC2Update
from torchrl_tdmpc.checkpoints import newest_checkpoint, read_metadata
from torchrl_tdmpc.cli import evaluate as command
from torchrl_tdmpc.cli.modes import settle_run
from torchrl_tdmpc.cli.train import train
from torchrl_tdmpc.envs import TaskSet, load_task, load_tasks
from torchrl_tdmpc.recording import OfflineRecord, normalised_score
from torchrl_tdmpc.trainers import EVALUATION_SEED, CollectionError, build_networks, evaluate

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_walks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tasks():
    return load_tasks(["walks:pendulum", "walks:car"])


def run(folder, data, *overrides):
    settings = (f"output_dir={folder}", f"data={data}", "eval.interval=4", "eval.episodes=2")
    trainer = train(configure_offline(*settings, *overrides))
    return trainer, rows(folder / "train.csv"), rows(folder / "eval.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A run of nine updates, its folder and its tables."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder, data, "train.steps=9")


def test_rows_of_updates_and_of_tasks(whole):
    _, trainer, table, evaluations = whole
    assert [row["step"] for row in table] == ["9"]  # fewer than row_interval
    assert all(math.isfinite(float(row["loss_consistency"])) for row in table)
    assert [(row["step"], row["task"]) for row in evaluations] == [
        (step, task) for step in "489" for task in ("walks:pendulum", "walks:car", "all")
    ]
    expected = evaluate(trainer.planner, trainer.task, episodes=2, seed=1 + EVALUATION_SEED)
    for name, row in zip(trainer.task.names, evaluations[-3:]):
        returns = [one["return"] for one in expected if one["task"] == name]
        assert float(row["reward"]) == pytest.approx(sum(returns) / 2)
        assert (row["episodes"], row["score"]) == ("2", "nan")
    assert [float(row["length"]) for row in evaluations[-3:-1]] == [6, 5]


def test_the_model_learns_the_rewards_of_both_tasks(tasks, data):
    trainer = OfflineTrainer(tasks, data, steps=250, batch_size=32, model=MODEL, eval_episodes=0)
    losses = []
    trainer.callbacks.append(Losses(losses))
    embedding = trainer.update.loss.world_model.task_context.embedding
    before = embedding.detach().clone()
    trainer.train()
    first, last = losses[:20], losses[-20:]
    assert sum(last) < 0.85 * sum(first)
    assert ((embedding - before).norm(dim=1) > 1e-3).all()


class Losses:
    def __init__(self, found):
        self.found = found

    def on_update(self, trainer, metrics):
        self.found.append(float(metrics["reward"]))


class Rows:
    def __init__(self, found):
        self.found = found

    def on_updates(self, trainer, row):
        self.found.append(row)


def test_a_resumed_run_repeats_an_uninterrupted_one(whole, data, tmp_path):
    _, uninterrupted, _, evaluations = whole
    run(tmp_path, data, "train.steps=6", "checkpoint.interval=4")
    resumed, again, evaluated = run(tmp_path, data, "train.steps=9", "resume=auto")
    assert resumed.counters.updates == 9
    ours, theirs = resumed.update.loss.state_dict(), uninterrupted.update.loss.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    # The end of the shorter run was evaluated too, and had a row
    same = [row for row in without_times(evaluated) if row["step"] != "6"]
    assert same == without_times(evaluations)
    assert [row["step"] for row in again] == ["6", "9"]


def test_evaluation_and_rows_leave_learning_as_it_is(whole, data, tmp_path):
    _, with_evaluations, *_ = whole
    other, *_ = run(tmp_path, data, "train.steps=9", "eval.episodes=0")
    ours, theirs = (t.update.loss.state_dict() for t in (other, with_evaluations))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_rows_average_the_updates_since_the_last_one(tasks, data):
    trainer = OfflineTrainer(
        tasks, data, steps=5, batch_size=4, model=MODEL, eval_episodes=0, row_interval=2
    )
    losses, found = [], []
    trainer.callbacks.append(Losses(losses))
    trainer.callbacks.append(Rows(found))
    trainer.train()
    assert [row["step"] for row in found] == [2, 4, 5]
    averages = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [row["reward"] for row in found] == pytest.approx(averages)


def test_a_run_can_be_stopped(tasks, data, tmp_path):
    class Stop:
        def on_update(self, trainer, metrics):
            if trainer.counters.updates == 3:
                trainer.stop()

    settings = {"output_dir": tmp_path, "batch_size": 4, "model": MODEL, "eval_episodes": 0}
    OfflineTrainer(tasks, data, steps=9, callbacks=[Stop()], **settings).train()
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.torchrl"))
    assert saved == ["checkpoint-000000000003.torchrl"]
    metadata = read_metadata(tmp_path / "checkpoints" / saved[0])
    assert metadata["updates"] == 3 and metadata["agent"]["tasks"] == tasks.names


def test_scores_are_those_published():
    cup, pendulum = load_task("dmcontrol", "cup-catch"), load_task("gym", "Pendulum-v1")
    assert normalised_score(cup, [1000, 500]) == 75
    assert math.isnan(normalised_score(pendulum, [-100]))
    assert normalised_score(pendulum, [-100, -200], [1.0, 0.0]) == 50
    pendulum = dataclasses.replace(pendulum, success_key="upright")
    record = OfflineRecord([cup, pendulum], [], seed=4)
    each = [
        {"task": "cup-catch", "return": 800.0, "length": 500},
        {"task": "Pendulum-v1", "return": -100.0, "length": 200, "success": 1.0},
    ]
    found = record.tasks_evaluated(7, each)
    assert [(row["task"], row["score"]) for row in found] == [
        ("cup-catch", 80),
        ("Pendulum-v1", 100),
        ("all", 90),
    ]
    assert all(set(row) <= set(record.eval_columns) for row in found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["env.num_envs=2"], "env.num_envs is 2, which has no effect with mode=offline"),
        (["train.seed_steps=5"], "train.seed_steps is 5, which has no effect with mode=offline"),
        (["env.task=cup-catch"], "env.task is 'cup-catch'; with mode=offline set env.tasks alone"),
        (["env.tasks=null"], "env.tasks is null; with mode=offline it must be mt30 or a list"),
        (["env.tasks=[cup-cath]"], "env.tasks has cup-cath: task 'cup-cath' is unknown (did you"),
        (["env.tasks=mt80"], "env.tasks is mt80, 50 tasks of which are of Meta-World"),
        (["env.tasks=[1]"], "env.tasks is [1]; it must be null, mt30 or a list of names"),
        (["multi_gamma.enabled=true"], "auxiliary value heads are for one task"),
        (["mode=ofline"], "mode 'ofline' is unknown (did you mean offline or online?)"),
        (["data=null"], "data is null; with mode=offline it must be the folder of a data set"),
        (["loss.discount=0.9"], "discount is 0.9; it must be None, because the world model has a"),
        (["planner.horizon=6"], "has episodes of 5 steps; a slice takes 6"),
        (["train.batch_size=0"], "train.batch_size is 0; it must be at least 1"),
        (["model.task_dim=0"], "embedding_dim is 0; it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data, tmp_path, settings, words):
    with pytest.raises((ValueError, ImportError)) as error:
        config = configure_offline(f"data={data}", f"output_dir={tmp_path / 'run'}", *settings)
        make_offline(config)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting", ["data=somewhere", "env.tasks=[cup-catch]", "env.success_key=x", "model.task_dim=3"]
)
def test_settings_of_several_tasks_are_refused_online(setting):
    with pytest.raises(ValueError, match="which has no effect with mode=online"):
        settle_run(configure(setting))


def test_the_folder_is_named_after_the_tasks(data):
    settled, tasks = settle_run(configure_offline(f"data={data}"))
    assert settled.output_dir.startswith("outputs/walks:pendulum+walks:car/")
    assert settled.logger.name == "walks:pendulum+walks:car-seed1"
    assert isinstance(tasks, TaskSet) and TINY_OFFLINE[0] == "mode=offline"
    assert (settled.loss.discount, settled.loss.rho) == (None, 0.5)


def test_a_run_is_evaluated_by_command(whole, capsys):
    folder, trainer, _, evaluations = whole
    names = ",".join(trainer.task.names)
    command.run([f"checkpoint={folder}", f"env.tasks=[{names}]"])
    lines = capsys.readouterr().out.strip().splitlines()
    for name, row in zip(trainer.task.names, evaluations[-3:]):
        (line,) = (line for line in lines if line.startswith(name))
        returned = float(row["reward"]), float(row["reward_std"])
        assert [float(x) for x in line.split()[2:4]] == pytest.approx(returned, abs=6e-4)
    assert lines[-1] == "mean score nan"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "env.tasks is not given; the run of"),
        (["env.task=cup-catch"], "is of 2 tasks; leave env.task out, and it is evaluated on all"),
        (["env.tasks=[cup-catch,walks:car]"], "is of the tasks walks:pendulum, walks:car; env.tas"),
        (["env.num_envs=3"], "env.num_envs is 3, which has no effect with mode=offline"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(whole, arguments, words):
    if "env.num_envs=3" in arguments:
        arguments = [*arguments, "env.tasks=[walks:pendulum,walks:car]"]
    with pytest.raises(SystemExit) as error:
        command.run([f"checkpoint={whole[0]}", *arguments])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_model_of_one_task_is_not_evaluated_on_several(tmp_path):
    config = configure("eval.episodes=0", "train.steps=20", f"output_dir={tmp_path}")
    train(config)
    with pytest.raises(SystemExit, match=r"is of one task; env.tasks must be left out"):
        command.run([f"checkpoint={tmp_path}", "env.tasks=[cup-catch,cartpole-swingup]"])


def test_a_model_of_other_tasks_is_refused(tasks, data):
    single = build_networks(tasks.padded[0], {**MODEL, "size": 1})
    other = build_networks(TaskSet("one", tasks.tasks[:1]), MODEL)
    for networks, discount, words in ((single, 0.9, " and has no task_context"), (other, None, "")):
        update = TDMPC2Update(TDMPC2Loss(*networks, discount=discount))
        with pytest.raises(ValueError, match=rf"of 1 tasks{words}; it must .* walks:pendulum, wal"):
            OfflineTrainer(tasks, data, update=update)


def test_an_evaluation_that_fails_ends_a_saved_run(data, tmp_path):
    trainer = make_offline(configure_offline(f"data={data}", f"output_dir={tmp_path}"))

    class Fail:
        def on_evaluation_step(self, trainer):
            raise RuntimeError("the motor is hot.\nIt has to cool down.")

    trainer.callbacks.append(Fail())
    with pytest.raises(CollectionError) as error:
        trainer.train()
    assert str(error.value) == (
        "in the evaluation, the environments failed after update 15 (RuntimeError: the motor is "
        f"hot); the run is saved, and resume={tmp_path} goes on with it."
    )
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert read_metadata(newest)["updates"] == 15


def test_a_folder_that_is_gone_is_noticed_at_the_next_update(data, tmp_path):
    folder, updates = tmp_path / "run", []

    class Delete:
        def on_update(self, trainer, metrics):
            updates.append(trainer.counters.updates)
            if trainer.counters.updates == 3:
                folder.rename(tmp_path / "moved")

    settings = (f"data={data}", f"output_dir={folder}", "eval.episodes=0")
    trainer = make_offline(configure_offline(*settings))
    trainer.callbacks.append(Delete())
    with pytest.raises(FileNotFoundError, match=f"'{folder}' was deleted, moved or replaced"):
        trainer.train()
    assert updates == [1, 2, 3] and not folder.exists()


def test_metrics_of_a_callback_that_comes_late_are_refused(data, tmp_path):
    class Late:
        metric_names = ("further",)

        def on_update(self, trainer, metrics):
            metrics["further"] = torch.zeros(())

    trainer = make_offline(configure_offline(f"data={data}", f"output_dir={tmp_path}"))
    trainer.callbacks.append(Late())
    with pytest.raises(ValueError, match=r"metric_names \['further'\] have no columns"):
        trainer.train()


def test_the_command_line_names_what_tells_success(tmp_path, capsys):
    data = stored_walks(tmp_path)
    facts = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(
        json.dumps({**facts, "tasks": ["walks:upright", "walks:car"]})
    )
    names = "env.tasks=[walks:upright,walks:car]"
    *_, found = run(tmp_path / "run", data, names, "env.success_key=success", "train.steps=2")
    scores = {row["task"]: row["score"] for row in found}
    assert scores == {"walks:upright": "100.0", "walks:car": "0.0", "all": "50.0"}
    assert [row["success"] for row in found] == ["1.0", "0.0", ""]
    command.run([f"checkpoint={tmp_path / 'run'}", names])
    assert capsys.readouterr().out.splitlines()[-1] == "mean score 50.00"
