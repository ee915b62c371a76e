"""Official checkpoints of several tasks: read, written, evaluated, refused."""

from __future__ import annotations

import pytest
import torch
from reference_data import references

from torchrl_tdmpc.checkpoints import load_official, official_weights, save_official
from torchrl_tdmpc.cli import evaluate as command
from torchrl_tdmpc.envs import load_tasks
from torchrl_tdmpc.objectives import TDMPC2Loss
from torchrl_tdmpc.trainers import build_networks, task_discounts

REFERENCES = references(multitask=True)
MODEL = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16}

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.fixture(params=REFERENCES)
def reference(request):
    return REFERENCES[request.param]


def official_entries(reference):
    """The weights of the reference numbers as a checkpoint has them."""
    entries = dict(reference.group("params_before"))
    for name in list(entries):
        if name.startswith("_Qs.params."):
            entries[name.replace("_Qs.params.", "_detach_Qs_params.")] = entries[name]
    low, high = reference.config["log_std_min"], reference.config["log_std_max"]
    return entries | {"log_std_min": torch.tensor(low), "log_std_dif": torch.tensor(high - low)}


def load(path, reference, entries, **changed):
    torch.save({"model": entries}, path)
    names = ("simnorm_dim", "vmin", "vmax")
    settings = {name: reference.config[name] for name in names}
    return load_official(path, **{"discount": reference.config["discounts"], **settings, **changed})


def test_official_outputs(reference, tmp_path):
    agent = load(tmp_path / "agent.pt", reference, official_entries(reference))
    config, expected = reference.config, reference.group("forward")
    assert agent.observation_shape == (config["obs_dim"],)
    assert agent.action_dim == config["action_dim"]
    world_model, q_ensemble = agent.loss.world_model, agent.loss.q_ensemble
    context = agent.loss.context(reference.batch())
    latent = world_model.encode(reference["batch/observation"][0], context)
    action = reference["batch/action"][0]
    target = agent.loss.target_q_ensemble_params
    ours = {
        "latent": latent[:, reference.order.argsort()],
        "policy_mean": agent.loss.policy_prior.mode(latent, context),
        "reward": world_model.reward(latent, action, context),
        "q_values": q_ensemble.value(latent, action, context),
        "q_logits_target": q_ensemble.logits(latent, action, context, params=target),
    }
    for name, value in ours.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5 * scale)
    assert torch.equal(world_model.task_context.discounts, reference["config/discounts"])


def test_round_trip_is_exact(reference, tmp_path):
    entries = official_entries(reference)
    loss = load(tmp_path / "agent.pt", reference, entries).loss
    save_official(tmp_path / "again.pt", loss)
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert entries.keys() <= again.keys()
    for name, entry in entries.items():
        assert torch.equal(again[name].double(), entry.double()), name


def test_a_file_without_masks_needs_the_tasks_dimensions(reference, tmp_path):
    entries = official_entries(reference)
    masks = entries.pop("_action_masks")
    with pytest.raises(ValueError, match=r"agent.pt has no entry '_action_masks', so action_dims"):
        load(tmp_path / "agent.pt", reference, entries)
    dims = reference.config["action_dims"]
    loss = load(tmp_path / "agent.pt", reference, entries, action_dims=dims).loss
    assert torch.equal(loss.world_model.task_context.action_masks, masks)
    assert torch.equal(official_weights(loss)["_task_emb.weight"], entries["_task_emb.weight"])


def test_what_does_not_fit_is_refused(reference, tmp_path):
    entries, count = official_entries(reference), reference.config["tasks"]
    path = tmp_path / "agent.pt"
    with pytest.raises(ValueError, match=rf"agent.pt is of {count} tasks; discount is 0.9 and"):
        load(path, reference, entries, discount=0.9)
    with pytest.raises(ValueError, match=rf"agent.pt is of {count} tasks; discount is \[0.9\] and"):
        load(path, reference, entries, discount=[0.9])
    masks = entries["_action_masks"].flip(1)
    with pytest.raises(ValueError, match=r"entry '_action_masks' of .*agent.pt must have ones, th"):
        load(path, reference, {**entries, "_action_masks": masks})
    wide = torch.zeros(count, entries["_task_emb.weight"].shape[1] + 1)
    with pytest.raises(ValueError, match=r"agent.pt"):
        load(path, reference, {**entries, "_task_emb.weight": wide})
    entries.pop("_task_emb.weight")
    with pytest.raises(ValueError, match=r"agent.pt is of one task; discount is \[.*must be a num"):
        load(path, reference, entries)


def test_it_is_evaluated_by_command(tmp_path, capsys):
    tasks = load_tasks(["walks:pendulum", "walks:car"])
    loss = TDMPC2Loss(*build_networks(tasks, MODEL))
    save_official(tmp_path / "agent.pt", loss)
    names = "env.tasks=[walks:pendulum,walks:car]"
    planner = ["planner.num_samples=16", "planner.num_elites=4", "planner.num_pi_trajs=2"]
    command.run([f"checkpoint={tmp_path}/agent.pt", names, "eval.episodes=2", *planner])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["walks:pendulum", "2"],
        ["walks:car", "2"],
    ]
    again = load_official(tmp_path / "agent.pt", discount=task_discounts(tasks))
    assert again.loss.world_model.task_context.discounts.tolist() == pytest.approx([0.95, 0.95])
    for arguments, words in {
        "env.tasks=[walks:pendulum]": r"agent.pt is of 2 tasks; .* must have a number for each",
        "env.task=cup-catch": r"agent.pt is of 2 tasks; .* must have a number for each",
        "env.tasks=[walks:pendulum,cup-catch]": r"agent.pt observes \[3\] and acts with 1",
    }.items():
        with pytest.raises(SystemExit, match=words):
            command.run([f"checkpoint={tmp_path}/agent.pt", arguments])
