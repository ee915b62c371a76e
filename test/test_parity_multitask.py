"""Every array of the reference numbers of one model of several tasks, computed by ours."""

from __future__ import annotations

import pytest
import torch
from reference_data import references
from test_parity import METRICS, check_weights

from torchrl_tdmpc import RunningPercentileScale, TaskContext
from torchrl_tdmpc.checkpoints import official_weights
from torchrl_tdmpc.checkpoints.official_entries import reorder_latent
from torchrl_tdmpc.modules import Execution
from torchrl_tdmpc.planners import PlanDraws

REFERENCES = references(multitask=True)


@pytest.fixture(params=REFERENCES)
def reference(request):
    return REFERENCES[request.param]


@pytest.fixture(autouse=True)
def compile_anew():
    """No graph is left from another test: after a few, torch would run the function eagerly."""
    torch.compiler.reset()


def assert_close(ours, published, tolerance=1e-5):
    """Equal to a tolerance relative to the array's scale."""
    scale = published.abs().max().item()
    torch.testing.assert_close(ours, published, rtol=0, atol=tolerance * scale)


def test_look_up_scales_the_rows_it_reads_and_no_others(reference):
    published = reference.group("embedding")
    num_tasks, size = published["weight_before"].shape
    tasks = TaskContext([1] * num_tasks, [0.9] * num_tasks, size)
    tasks.embedding.data.copy_(published["weight_before"])
    assert_close(tasks(published["task"]).embedding, published["rows"])
    assert_close(tasks.embedding.detach(), published["weight_after"])
    assert not torch.equal(published["weight_before"], published["weight_after"])


def test_masks_are_those_of_the_tasks(reference):
    tasks = reference._task_context()
    for when in ("params_before", "params_after_update_2"):
        assert torch.equal(tasks.action_masks, reference[f"{when}/_action_masks"])
    assert torch.equal(tasks.discounts, reference["config/discounts"])


def test_forward(reference):
    loss = reference.make_loss()
    world_model, policy_prior, q_ensemble = loss.world_model, loss.policy_prior, loss.q_ensemble
    published = reference.group("forward")
    action = reference["batch/action"][0]
    context = loss.context(reference.batch())

    latent = world_model.encode(reference["batch/observation"][0], context)
    assert_close(latent, published["latent"][:, reference.order])
    next_latent = world_model.next(latent, action, context)
    assert_close(next_latent, published["next_latent"][:, reference.order])
    reward_logits = world_model.reward_logits(latent, action, context)
    assert_close(reward_logits, published["reward_logits"])
    assert_close(world_model.reward(latent, action, context), published["reward"])
    assert_close(q_ensemble.logits(latent, action, context), published["q_logits"])
    assert_close(q_ensemble.value(latent, action, context), published["q_values"])
    params = loss.target_q_ensemble_params
    target = q_ensemble.logits(latent, action, context, params=params)
    assert_close(target, published["q_logits_target"])

    eps = published["policy_eps"]
    policy = policy_prior.sample(latent, eps, context)
    for name in ("action", "mean", "log_std", "entropy", "scaled_entropy"):
        assert_close(getattr(policy, name), published[f"policy_{name}"])
    assert_close(policy_prior.act(latent, eps, context), published["policy_action"])
    assert_close(policy_prior.mode(latent, context), published["policy_mean"])
    beyond = context.action_mask == 0
    assert beyond.any() and not policy.action[beyond].any() and not policy.log_std[beyond].any()

    assert_close(world_model.task_context.embedding.detach(), published["task_emb_weight"])
    assert not world_model.episodic


def test_two_hot(reference):
    two_hot, published = reference.two_hot, reference.group("two_hot")
    assert_close(two_hot.encode(published["scalar"]), published["encoded"])
    assert_close(two_hot.decode(published["logits"]), published["decoded"])
    cross_entropy = two_hot.cross_entropy(published["logits"], published["scalar"])
    assert_close(cross_entropy, published["cross_entropy"])


def test_value_scale(reference):
    scale = RunningPercentileScale(reference.config["tau"])
    published = reference.group("value_scale")
    for values, expected in zip(published["inputs"], published["values"]):
        scale.update(values)
        assert_close(scale.value, expected)


def test_trajectory_value(reference):
    for task in range(reference.config["tasks"]):
        planner, published = (
            reference.make_planner(),
            reference.group(f"task_{task}/trajectory_value"),
        )
        context = planner.world_model.task_context(torch.tensor([task]))
        latent = planner.world_model.encode(published["observation"], context)
        value = planner.trajectory_value(
            latent.unsqueeze(1),
            published["actions"].unsqueeze(0),
            published["terminal_policy_eps"].unsqueeze(0),
            published["q_pair"],
            context.unsqueeze(1),
        )
        assert_close(value.squeeze(0), published["value"], 1e-4)


@pytest.mark.parametrize(
    ("call", "compile"),
    [("plan_cold", "off"), ("plan_warm", "off"), ("plan_eval", "off"), ("plan_warm", "default")],
)
def test_plan(reference, call, compile):
    planner = reference.make_planner(Execution(compile))
    for task, num_actions in enumerate(reference.config["action_dims"]):
        published = reference.group(f"task_{task}/{call}")
        previous_mean = published["previous_mean"]
        if call == "plan_cold":
            previous_mean = torch.zeros_like(previous_mean)
        explore = "action_noise" in published
        draws = PlanDraws(
            policy_trajectories=published["policy_prior_eps"].unsqueeze(0),
            samples=published["sample_noise"].unsqueeze(1),
            terminal_policy=published["terminal_policy_eps"].unsqueeze(1),
            q_pair=published["q_pair"],
            elite=published["elite_exponential"].unsqueeze(0),
            action=published["action_noise"].unsqueeze(0) if explore else torch.empty(0),
        )
        context = planner.world_model.task_context(torch.tensor([task]))
        latent = planner.world_model.encode(published["observation"], context)
        plan = planner.plan(
            latent, previous_mean.unsqueeze(0), draws, explore=explore, context=context
        )
        assert_close(plan.action.squeeze(0), published["action"], 1e-4)
        assert_close(plan.mean.squeeze(0), published["mean"], 1e-4)
        assert not plan.action[..., num_actions:].any() and not plan.mean[..., num_actions:].any()
        assert plan.nan_values == 0


@pytest.mark.parametrize("compile", ["off", "default"])
def test_updates(reference, compile):
    update, batch = reference.make_update(Execution(compile)), reference.batch()
    embedding = update.loss.world_model.task_context.embedding
    for step in range(3):
        published = reference.group(f"update_{step}")
        model_draws = {
            "policy_eps": published["td_policy_eps"].transpose(0, 1),
            "q_pair": published["td_q_pair"],
        }
        actor_draws = {
            "policy_eps": published["policy_eps"].transpose(0, 1),
            "q_pair": published["policy_q_pair"],
        }
        with torch.no_grad():
            rollout = update.loss.model_loss(batch, **model_draws)["rollout"]
        following, discount = rollout["next"], rollout["context", "discount"]
        bootstrap = (1 - following["terminated"].float()) * following["state_value"]
        td_target = following["reward"] + discount * bootstrap
        assert_close(td_target.transpose(0, 1), published["td_target"])

        clipped = {}
        hook = update.model_optimizer.register_step_pre_hook(
            lambda *_, clipped=clipped: clipped.update(
                {n: w.grad.clone() for n, w in official_weights(update.loss).items() if has_grad(w)}
            )
        )
        metrics = update(batch, model_draws=model_draws, actor_draws=actor_draws)
        hook.remove()
        for name, published_name in METRICS.items():
            ours = metrics.get(name, torch.zeros(()))  # no termination loss without that head
            assert_close(ours, published[f"metric_{published_name}"])
        assert set(published) >= {f"metric_{name}" for name in METRICS.values()}
        total = sum(metrics[f"loss_{term}"] for term in ("consistency", "reward", "value"))
        assert_close(total, published["metric_total_loss"])

        gradients = reorder_latent(
            reference.group(f"update_{step}/clipped_grad_model"), reference.order
        )
        assert "_task_emb.weight" in gradients
        for name, gradient in gradients.items():
            assert_close(clipped[name], gradient, 1e-4)
        if step == 0:
            policy = reference.group("update_0/clipped_grad_policy")
            for name, gradient in reorder_latent(policy, reference.order).items():
                assert_close(official_weights(update.loss)[name].grad, gradient, 1e-4)
        left = update.model_optimizer.state[embedding]["left_by_policy"]
        assert_close(left, published["task_emb_grad_left_by_policy"], 1e-4)
        assert_close(embedding.detach(), published["task_emb_weight"])
    check_weights(update, reference)


def has_grad(weight):
    return weight.grad is not None
