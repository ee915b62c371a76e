"""The context: absent it changes nothing; with several tasks each row computes as its own task."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from tiny import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    OBSERVATION,
    seeded,
    tiny_batch,
    tiny_draws,
    tiny_loss,
    tiny_multitask_batch,
    tiny_multitask_loss,
    tiny_multitask_networks,
    tiny_networks,
    tiny_planner,
    tiny_planner_input,
    tiny_tasks,
    total,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_tdmpc import (
    LatentEnv,
    TaskContext,
    TDMPC2Loss,
    TDMPC2Planner,
    TDMPC2WorldModel,
    make_networks,
)
from torchrl_tdmpc.checkpoints import load_checkpoint, save_checkpoint
from torchrl_tdmpc.modules import Context
from torchrl_tdmpc.planners.tdmpc2 import CPU_ENVS
from torchrl_tdmpc.trainers import TDMPC2Update

ENVS = CPU_ENVS + 2  # planned for in two groups
TASKS = torch.tensor([0, 1, 2, 1, 2, 0])
NUM_ACTIONS = (ACTION, 1, ACTION)


def nothing(*batch: int) -> Context:
    """An embedding without numbers."""
    return Context(embedding=torch.zeros(*batch, 0))


def tiny_multitask_planner(**kwargs):
    return tiny_planner(networks=tiny_multitask_networks(), discount=None, **kwargs)


def tiny_multitask_input(tasks=TASKS):
    return tiny_planner_input(len(tasks)).set("task", tasks)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- absent


@pytest.mark.parametrize("episodic", [True, False])
def test_empty_embedding_changes_no_network(episodic):
    world_model, policy_prior, q_ensemble = tiny_networks(episodic=episodic)
    observation, action = torch.randn(BATCH, OBSERVATION), torch.randn(BATCH, ACTION).tanh()
    latent, context = world_model.encode(observation), nothing(BATCH)
    equal(world_model.encode(observation, context), latent)
    for name in ("next", "reward_logits", "reward"):
        part = getattr(world_model, name)
        equal(part(latent, action, context), part(latent, action))
    if episodic:
        equal(world_model.termination(latent, context), world_model.termination(latent))
    equal(q_ensemble.value(latent, action, context), q_ensemble.value(latent, action))
    equal(policy_prior.sample(latent, action, context), policy_prior.sample(latent, action))


@pytest.mark.parametrize("episodic", [True, False])
def test_empty_embedding_changes_no_loss_and_no_gradient(episodic):
    batch, (model_draws, actor_draws) = tiny_batch(), tiny_draws()
    results = []
    for context in (None, nothing(BATCH)):
        loss = tiny_loss(episodic=episodic, dropout=0.5)
        torch.manual_seed(0)
        model = loss.model_loss(batch, **model_draws, context=context)
        actor = loss.actor_loss(model["rollout"], **actor_draws, context=context)
        (total(model) + total(actor)).backward()
        gradients = {name: p.grad for name, p in loss.named_parameters()}
        rollout = model.pop("rollout").exclude("context")
        results.append([model.to_dict(), actor.to_dict(), gradients, rollout.to_dict()])
    equal(*results)


@pytest.mark.parametrize("explore", [True, False])
def test_empty_embedding_changes_no_plan(explore):
    planner, data = tiny_planner(), tiny_planner_input(ENVS)
    latent = planner.world_model.encode(data["observation"])
    plans = [
        seeded(planner.plan, latent, data["_previous_mean"], explore=explore, context=context)
        for context in (Context(), nothing(ENVS))
    ]
    equal(*plans)


def test_empty_embedding_changes_no_update(monkeypatch):
    results = []
    for context in (Context(), nothing(BATCH)):
        update = TDMPC2Update(tiny_loss(dropout=0.5))
        monkeypatch.setattr(update.loss, "context", lambda _, context=context: context)
        metrics = [seeded(update, tiny_batch(seed), seed=seed).to_dict() for seed in range(2)]
        results.append([metrics, dict(update.loss.state_dict())])
    equal(*results)


def test_single_task_has_no_context():
    loss = tiny_loss()
    assert loss.context(tiny_batch()) == Context() and loss.world_model.task_context is None
    rollout = loss.model_loss(tiny_batch())["rollout"]
    assert {"task", "context"}.isdisjoint(rollout.keys())
    assert not any("task" in name for name in loss.state_dict())


# ---------------------------------------------------------------- losses


def test_rows_of_a_mixed_batch_are_those_of_their_task():
    loss, batch = tiny_multitask_loss(reduction="none"), tiny_multitask_batch()
    model_draws, actor_draws = tiny_draws()
    loss.value_scale.tau = 0.0

    def terms(batch, rows):
        model = loss.model_loss(
            batch, policy_eps=model_draws["policy_eps"][rows], q_pair=model_draws["q_pair"]
        )
        actor = loss.actor_loss(
            model["rollout"],
            policy_eps=actor_draws["policy_eps"][rows],
            q_pair=actor_draws["q_pair"],
        )
        return {name: {**model, **actor}[name] for name in ("reward", "value", "actor")}

    mixed = terms(batch, slice(None))
    for row in range(BATCH):
        one = slice(row, row + 1)
        for name, term in terms(batch[one], one).items():
            close(term[0], mixed[name][row])
    other_tasks = batch.clone().set("task", (batch["task"] + 1) % 3)
    for name, term in terms(other_tasks, slice(None)).items():
        assert (term != mixed[name]).any(1).all(), name


def test_rollout_carries_task_and_context():
    loss, batch = tiny_multitask_loss(), tiny_multitask_batch()
    rollout = loss.model_loss(batch)["rollout"]
    tasks = loss.world_model.task_context
    equal(rollout["task"], batch["task"])
    equal(rollout["context", "embedding"], tasks.embedding[batch["task"]])
    equal(rollout["context", "action_mask"], tasks.action_masks[batch["task"]])
    equal(rollout["context", "discount"], tasks.discounts[batch["task"]].unsqueeze(-1))
    rollout["context", "embedding"].sum().backward()  # an auxiliary loss may train it
    assert tasks.embedding.grad.all()


def test_task_may_be_a_column():
    loss, batch = tiny_multitask_loss().eval(), tiny_multitask_batch()
    column = batch.clone().set("task", batch["task"].unsqueeze(-1))
    equal(seeded(loss, column).to_dict(), seeded(loss, batch).to_dict())


def test_policy_loss_sees_the_embedding_as_it_is_now():
    loss, batch = tiny_multitask_loss(), tiny_multitask_batch()
    model_draws, actor_draws = tiny_draws()
    rollout = loss.model_loss(batch, **model_draws)["rollout"]
    before = loss.eval().actor_loss(rollout, **actor_draws)["actor"]
    with torch.no_grad():
        loss.world_model.task_context.embedding.neg_()
    assert loss.actor_loss(rollout, **actor_draws)["actor"] != before


def test_masked_dimensions_of_the_policy():
    _, policy_prior, _ = tiny_multitask_networks()
    context = tiny_tasks()(torch.tensor([1]))
    latent, eps = torch.randn(1, LATENT), torch.randn(1, ACTION)
    policy = policy_prior.sample(latent, eps, context)
    for x in (policy.action, policy.mean, policy.log_std, policy_prior.mode(latent, context)):
        assert x[0, 0] != 0 and x[0, 1] == 0
    # One dimension scales the entropy; the other one adds half of log 2 pi
    normal = torch.distributions.Normal(0.0, policy.log_std[0, 0].exp())
    own = normal.log_prob(eps[0, 0] * policy.log_std[0, 0].exp())
    close(policy.scaled_entropy[0, 0], 0.918938533 - own)


# ---------------------------------------------------------------- planner


@pytest.mark.parametrize("explore", [True, False])
def test_plan_for_several_tasks_equals_plans_for_each_alone(explore):
    planner, data = tiny_multitask_planner(), tiny_multitask_input()
    context = planner.world_model.context(data)
    latent = planner.world_model.encode(data["observation"], context)
    draws = planner.draw(latent)
    together = planner.plan(latent, data["_previous_mean"], draws, explore=explore, context=context)
    for env in range(ENVS):
        one = slice(env, env + 1)
        alone = planner.plan(
            latent[one],
            data["_previous_mean"][one],
            draws.of(one),
            explore=explore,
            context=context.of(one),
        )
        for ours, theirs in zip(together, alone, strict=True):
            close(ours[one], theirs)
    other = planner.plan(
        latent,
        data["_previous_mean"],
        draws,
        explore=explore,
        context=context.of([1, 2, 0, 5, 3, 4]),
    )
    assert not torch.isclose(other.elite_value, together.elite_value).all(1).any()


@pytest.mark.parametrize("mpc", [True, False])
@pytest.mark.parametrize("mode", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_each_environment_acts_in_its_own_dimensions(mpc, mode):
    planner, data = tiny_multitask_planner(mpc=mpc), tiny_multitask_input()
    with set_exploration_type(mode):
        out = planner(data.clone())
    for env, task in enumerate(TASKS.tolist()):
        own = NUM_ACTIONS[task]
        assert out["action"][env, :own].all() and not out["action"][env, own:].any()
        if mpc:
            assert not out["next", "_previous_mean"][env, :, own:].any()
    changed = planner.in_keys[-1]
    assert changed == "task"
    with pytest.raises(KeyError, match="task"):
        planner(data.exclude("task"))


def test_discount_of_the_task_counts_in_planning():
    planner = tiny_multitask_planner()
    tasks = planner.world_model.task_context
    z, actions = torch.randn(1, 1, LATENT).softmax(-1), torch.zeros(1, HORIZON, 1, ACTION)
    eps, pair = torch.zeros(1, 1, ACTION), torch.tensor([0, 1])
    context = tasks(torch.tensor([1])).unsqueeze(1)
    value = planner.trajectory_value(z, actions, eps, pair, context)
    expected, latent = 0.0, z
    for t in range(HORIZON):
        reward = planner.world_model.reward(latent, actions[:, t], context)
        expected = expected + 0.5**t * reward
        latent = planner.world_model.next(latent, actions[:, t], context)
    action = planner.policy_prior.mode(latent, context)
    q = planner.q_ensemble.value(latent, action, context, pair=pair).mean(0)
    close(value, expected + 0.5**HORIZON * q)


def test_latent_env_carries_the_context():
    world_model, policy_prior, _ = tiny_multitask_networks()
    env = LatentEnv(world_model, ACTION)
    start = TensorDict(observation=torch.randn(3, OBSERVATION), task=torch.arange(3), batch_size=3)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env.rollout(
            HORIZON, policy_prior, auto_reset=False, tensordict=env.reset(start.clone())
        )
    context = world_model.context(start)
    latent = world_model.encode(start["observation"], context)
    for t in range(HORIZON):
        action = policy_prior.mode(latent, context)
        close(rollout["action"][:, t], action)
        latent = world_model.next(latent, action, context)
        close(rollout["next", "latent"][:, t], latent)


def test_world_model_as_a_module_writes_what_the_others_read():
    world_model, policy_prior, q_ensemble = tiny_multitask_networks(dropout=0.0)
    batch = tiny_multitask_batch()
    rollout = tiny_multitask_loss().model_loss(batch)["rollout"]
    data = world_model(batch.clone())
    equal(data["latent"], rollout["latent"])
    context = world_model.context(batch)
    q = q_ensemble.value(data["latent"], batch["action"], context)
    close(q_ensemble(data.clone())["state_action_value"], q.squeeze(-1).movedim(0, -1))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = policy_prior(data.clone())["action"]
    close(action, policy_prior.mode(data["latent"], context))


# ---------------------------------------------------------------- update


def test_one_look_up_before_each_compiled_function(monkeypatch):
    update, look_ups = TDMPC2Update(tiny_multitask_loss()), []
    tasks = update.loss.world_model.task_context
    monkeypatch.setattr(
        tasks, "forward", lambda task, f=tasks.forward: look_ups.append(where[0]) or f(task)
    )
    where = ["outside"]
    for name in ("_model_losses", "_actor_loss"):
        function = getattr(update, name)

        def entered(*args, function=function, name=name, **kwargs):
            where[0] = name
            result = function(*args, **kwargs)
            where[0] = "outside"
            return result

        monkeypatch.setattr(update, name, entered)
    update(tiny_multitask_batch())
    assert look_ups == ["outside", "outside"]


def gradients_left(update):
    embedding = update.loss.world_model.task_context.embedding
    return update.model_optimizer.state[embedding]["left_by_policy"]


def test_gradient_left_by_the_policy_enters_the_next_step():
    loss, batch = tiny_multitask_loss(), tiny_multitask_batch()
    update = TDMPC2Update(loss, grad_clip_norm=1e6)
    update(batch, *tiny_draws())
    left = gradients_left(update).clone()
    assert left.abs().max() > 1e-3
    embedding = loss.world_model.task_context.embedding
    plain = deepcopy(loss)
    total(plain.model_loss(batch, **tiny_draws()[0])).backward()
    seen = []
    update.model_optimizer.register_step_pre_hook(lambda *_: seen.append(embedding.grad.clone()))
    update(batch, *tiny_draws())
    close(seen[0], plain.world_model.task_context.embedding.grad + left)


@pytest.mark.parametrize("forget", [False, True])
def test_gradient_left_by_the_policy_is_in_a_checkpoint(forget, tmp_path):
    update = TDMPC2Update(tiny_multitask_loss())
    update(tiny_multitask_batch(), *tiny_draws())
    parts = lambda u: {  # noqa: E731
        "loss": u.loss,
        "model_optimizer": u.model_optimizer,
        "actor_optimizer": u.actor_optimizer,
    }
    save_checkpoint(tmp_path, 1, parts(update))
    other = TDMPC2Update(tiny_multitask_loss(seed=1))
    load_checkpoint(tmp_path, parts(other))
    equal(gradients_left(other), gradients_left(update))
    if forget:
        gradients_left(other).zero_()
    for seed in range(2):
        metrics = [u(tiny_multitask_batch(seed), *tiny_draws(seed)) for u in (update, other)]
    same = torch.equal(metrics[0]["grad_norm_model"], metrics[1]["grad_norm_model"])
    assert same != forget


def test_skipped_steps_keep_no_gradient_that_is_not_finite():
    update, batch = TDMPC2Update(tiny_multitask_loss()), tiny_multitask_batch()
    update(batch)
    before = gradients_left(update).clone()
    broken = batch.clone()
    broken["next", "reward"][0, 0] = float("nan")
    assert update(broken)["skipped_updates"] == 1
    equal(gradients_left(update), before)
    update.loss.entropy_coef.fill_(float("inf"))  # an assignment would be refused
    assert update(batch)["skipped_updates"] == 1
    update.loss.entropy_coef = 1e-4
    assert not gradients_left(update).any()
    assert update(batch)["skipped_updates"] == 0


class UnconditionedLoss(TDMPC2Loss):
    """Its policy loss does not reach the embedding."""

    def actor_loss(self, rollout, *, context, **kwargs):
        context = context._replace(embedding=context.embedding.detach())
        return super().actor_loss(rollout, context=context, **kwargs)


def test_policy_loss_that_does_not_reach_the_embedding_leaves_nothing():
    loss = tiny_multitask_loss(loss_class=UnconditionedLoss)
    update = TDMPC2Update(loss)
    assert update(tiny_multitask_batch())["skipped_updates"] == 0
    assert not gradients_left(update).any()


# ---------------------------------------------------------------- refusals


def world_model_of_tasks_that_end():
    world_model, _, _ = tiny_networks(episodic=True)
    TDMPC2WorldModel(
        world_model.encoder,
        world_model.dynamics,
        world_model.reward_head,
        world_model.termination_head,
        latent_dim=LATENT,
        task_context=tiny_tasks(),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskContext([], []), r"0 action_dims and 0 discounts; each task needs one"),
        (lambda: TaskContext([1, 2], [0.9]), r"2 action_dims and 1 discounts; each task needs"),
        (lambda: TaskContext([1, 0], [0.9, 0.9]), r"action_dims is \[1, 0\]; .* at least 1"),
        (lambda: TaskContext([1], [1.0]), r"discounts is \[1.0\]; .*strictly between 0 and 1"),
        (lambda: TaskContext([1], [0.9], 0), r"embedding_dim is 0; it must be at least 1"),
        (world_model_of_tasks_that_end, r"tasks and a termination head; .* no terminations"),
        (
            lambda: make_networks((3,), 5, task_context=tiny_tasks()),
            r"action_dim is 5 and the widest action of the tasks has 2 dimensions",
        ),
        (
            lambda: make_networks((9, 64, 64), ACTION, task_context=tiny_tasks()),
            r"observation's shape is \(9, 64, 64\); .* one task alone",
        ),
        (
            lambda: TDMPC2Loss(*tiny_multitask_networks(), discount=0.9),
            r"discount is 0.9; it must be None, .* each of its tasks",
        ),
        (
            lambda: tiny_planner(networks=tiny_multitask_networks()),
            r"discount is 0.9; it must be None, .* each of its tasks",
        ),
        (lambda: tiny_planner(discount=None), r"discount is None; .*between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_task_is_named():
    with pytest.raises(KeyError, match="task"):
        tiny_multitask_loss()(tiny_batch())


@pytest.mark.parametrize("task", [[0, 3], [-1, 0]])
def test_an_index_of_no_task_is_refused(task):
    with pytest.raises(ValueError, match=rf"task has the indices .*{task[0]}.*; there are 3 tasks"):
        tiny_tasks()(torch.tensor(task))


def test_several_tasks_need_no_discount():
    networks = tiny_multitask_networks()
    assert TDMPC2Loss(*networks).discount is TDMPC2Planner(*networks).discount is None
    for part in (TDMPC2Loss, TDMPC2Planner):
        with pytest.raises(ValueError, match="discount is None; it must lie strictly between"):
            part(*tiny_networks())
