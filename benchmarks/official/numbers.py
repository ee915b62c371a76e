"""What the official implementation computes for one case: inputs, draws and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.official.adapter import InPlaceOfCUDA, Official
from benchmarks.official.cases import CONFIG, CONFIG_OF_TASKS, Case
from benchmarks.official.draws import Draws

__all__ = ["Numbers"]

SCALARS = (-3e4, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 17.3, 999.0, 3e4)
VALUES = ("forward/q_values", "trajectory_value/value")
#: a plan weighs trajectories by the exponential of their values: of larger ones float32 keeps too
#: few digits for implementations to be compared
LARGEST_VALUE = 100
#: norms of rows of the embedding, in turn: one is divided by its norm, one may soon be
NORMS = (1.6, 0.9999, 0.6, 0.85)


class Numbers(dict[str, Any]):
    """All arrays of one case by their names, see ``test/reference/README.md``.

    They depend on torch's random state alone. :attr:`unmet` names what they should exercise and
    do not: then the next draws may.
    """

    def __init__(self, official: Official, case: Case):
        super().__init__()
        self.official = official
        self.case = case
        self.config = official.config(**case.config())
        self.agent = official.agent(self.config)
        self.model = self.agent.model
        if case.channels and not case.shift:
            self.model._encoder["rgb"][0] = nn.Identity()
        self.rows_pushed_above_1 = False
        self._move_weights()
        self._add("params_before", self._weights())
        self._add("config", self._config())
        self._add("batch", self._draw_batch())
        if case.multitask:
            self._add("embedding", self._embedding())
        with self._table_unchanged():
            self._add("forward", self._forward())
        self._add("two_hot", self._two_hot())
        self._plan_and_evaluate()
        self._add("value_scale", self._value_scale())
        for step in range(3):
            self._add(f"update_{step}", self._update(step))
        self._add("params_after_update_2", self._weights())

    @property
    def unmet(self) -> list[str]:
        """What these numbers fail to exercise."""
        largest = max(v.abs().max() for n, v in self.items() if n.endswith(VALUES))
        met = {
            "value scale above 1": self["update_0/metric_pi_scale"] > 1,
            f"values that are all below {LARGEST_VALUE}": largest < LARGEST_VALUE,
        }
        if self.config.episodic:
            logit = self["forward/termination_logit"]
            met["termination logits on both sides of 0"] = (logit > 0).any() & (logit < 0).any()
        if self.case.multitask:
            met["an embedding that a step pushes above norm 1"] = self.rows_pushed_above_1
        return [what for what, holds in met.items() if not holds]

    def _add(self, group: str, numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            value = value.detach().clone() if isinstance(value, Tensor) else value
            self[f"{group}/{name}"] = value

    @torch.no_grad()
    def _move_weights(self) -> None:
        """Far from zero heads and unit norms, targets apart from the Q-functions."""
        for parameter in self.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        heads = [self.model._Qs.params["2", "weight"].data]
        if self.config.episodic:
            heads.append(self.model._termination[-1].weight)
        for weight in heads:
            weight += 0.5 * torch.randn_like(weight)
        online = dict(self.model._Qs.params.data.items(True, True))
        for name, target in self.model._target_Qs_params.data.items(True, True):
            target.copy_(online[name] + 0.1 * torch.randn_like(target))
        if self.case.multitask:
            tasks = range(len(self.config.tasks))
            _set_norms(self.model._task_emb.weight, [NORMS[i % len(NORMS)] for i in tasks])

    def _weights(self) -> dict[str, Tensor]:
        """Those of a checkpoint, without the second copy of the Q-functions."""
        state = self.model.state_dict()
        return {n: w for n, w in state.items() if not n.startswith("_detach_Qs")}

    def _config(self) -> dict[str, Any]:
        config, case = self.config, self.case
        numbers = {name: getattr(config, name) for name in CONFIG}
        numbers["obs_dim"] = max(case.obs_dims, default=0)
        if config.dropout:
            numbers["dropout"] = config.dropout
        if not case.multitask:
            return {**numbers, "discount": self.agent.discount}
        numbers |= {name: getattr(config, name) for name in CONFIG_OF_TASKS}
        sizes = {"tasks": len(config.tasks), "obs_dims": case.obs_dims}
        return {**numbers, **sizes, "discounts": self.agent.discount}

    def _draw_batch(self) -> dict[str, Tensor]:
        """Random transitions; one reward is exactly 0 and one is 500."""
        config, case = self.config, self.case
        steps = (config.horizon, config.batch_size)
        observations = (config.horizon + 1, config.batch_size, *case.obs_shape)
        if case.channels:
            observation = torch.randint(256, observations, dtype=torch.uint8)
        else:
            observation = torch.randn(observations)
        action = 2 * torch.rand(*steps, config.action_dim) - 1
        reward = 3 * torch.randn(*steps, 1)
        reward[0, 0], reward[-1, -1] = 0.0, 500.0
        terminated = torch.zeros(*steps, 1)
        if config.episodic:
            terminated.bernoulli_(0.4)
        batch = {"observation": observation, "action": action}
        batch |= {"reward": reward, "terminated": terminated}
        if case.multitask:
            task = torch.arange(config.batch_size) % len(case.action_dims)
            batch["task"] = task = task[torch.randperm(config.batch_size)]
            for b, i in enumerate(task):  # padding
                observation[:, b, case.obs_dims[i] :] = 0
                action[:, b, case.action_dims[i] :] = 0
        return batch

    def _embedding(self) -> dict[str, Tensor]:
        """A look-up that does not read every row."""
        tasks = len(self.config.tasks)
        table = nn.Embedding(tasks, self.config.task_dim, max_norm=1)
        _set_norms(table.weight.data, [1.6, *(tasks - 2) * [0.5], 2.3])
        before = table.weight.detach().clone()
        task = torch.arange(tasks) % (tasks - 1)  # the first row twice, the last one never
        rows = table(task)
        return {"weight_before": before, "task": task, "rows": rows, "weight_after": table.weight}

    @contextmanager
    def _table_unchanged(self) -> Iterator[None]:
        """Undo what look-ups do to the embedding."""
        tables = [self.model._task_emb.weight.data] if self.case.multitask else []
        before = [table.clone() for table in tables]
        yield
        for table, weight in zip(tables, before):
            table.copy_(weight)

    @torch.no_grad()
    def _forward(self) -> dict[str, Tensor]:
        model, math = self.model, self.official.module("common.math")
        action, task = self["batch/action"][0], self.get("batch/task")
        with Draws() as draws:
            latent = model.encode(self["batch/observation"][0], task)
            reward_logits = model.reward(latent, action, task)
            q_logits = model.Q(latent, action, task, return_type="all")
            policy_action, policy = model.pi(latent, task)
            numbers = {
                "latent": latent,
                "next_latent": model.next(latent, action, task),
                "reward_logits": reward_logits,
                "reward": math.two_hot_inv(reward_logits, self.config),
                "q_logits": q_logits,
                "q_values": math.two_hot_inv(q_logits, self.config),
                "q_logits_target": model.Q(latent, action, task, return_type="all", target=True),
                "policy_eps": draws.take("randn_like"),
                "policy_action": policy_action,
            }
            names = ("mean", "log_std", "entropy", "scaled_entropy")
            numbers |= {f"policy_{name}": policy[name] for name in names}
            if self.config.episodic:
                numbers["termination_logit"] = model.termination(latent, task, unnormalized=True)
            if self.case.multitask:
                numbers["task_emb_weight"] = model._task_emb.weight
            if self.case.shift:
                numbers["shift"] = _shift(draws.take("randint"))
        return numbers

    def _two_hot(self) -> dict[str, Tensor]:
        math, config = self.official.module("common.math"), self.config
        scalar = torch.tensor(SCALARS).unsqueeze(1)
        logits = torch.randn(len(SCALARS), config.num_bins)
        return {
            "scalar": scalar,
            "encoded": math.two_hot(scalar, config),
            "logits": logits,
            "cross_entropy": math.soft_ce(logits, scalar, config),
            "decoded": math.two_hot_inv(logits, config),
        }

    def _value_scale(self) -> dict[str, Tensor]:
        """Four updates with values of very different ranges."""
        with InPlaceOfCUDA(torch.device("cpu")):
            scale = self.official.module("common.scale").RunningScale(self.config)
        inputs = torch.tensor([1.0, 5.0, 30.0, 3.0]).view(4, 1, 1) * torch.randn(4, 9, 1)
        values = []
        for value in inputs:
            scale.update(value)
            values.append(scale.value.clone())
        return {"inputs": inputs, "values": torch.stack(values)}

    def _plan_and_evaluate(self) -> None:
        """Three plans and the value of given trajectories, for each task."""
        if not self.case.multitask:
            self._plans("", None, 0)
            self._add("trajectory_value", self._trajectory_value(None, 0))
            return
        for task in range(len(self.config.tasks)):
            row = self["batch/task"].tolist().index(task)
            self._plans(f"task_{task}/", task, row)
            with self._table_unchanged():
                numbers = self._trajectory_value(task, row)
            numbers["observation"] = self["batch/observation"][0, row : row + 1]
            self._add(f"task_{task}/trajectory_value", numbers)

    def _plans(self, group: str, task: int | None, row: int) -> None:
        calls = ("plan_cold", True, False), ("plan_warm", False, False), ("plan_eval", False, True)
        for t, (name, cold, evaluate) in enumerate(calls):
            observation = self["batch/observation"][t, row]
            with self._table_unchanged():
                self._add(group + name, self._plan(observation, cold, evaluate, task))

    def _plan(
        self, observation: Tensor, cold: bool, evaluate: bool, task: int | None
    ) -> dict[str, Tensor]:
        """One call of the planner with its draws."""
        config, agent = self.config, self.agent
        numbers = {"previous_mean": agent._prev_mean.clone()}
        with Draws() as draws:
            action = agent.act(observation, t0=cold, eval_mode=evaluate, task=task)
            numbers |= {
                "policy_prior_eps": draws.take("randn_like", config.horizon),
                "sample_noise": draws.take("randn", config.iterations),
                "terminal_policy_eps": draws.take("randn_like", config.iterations),
                "q_pair": draws.take("randperm", config.iterations)[:, :2],
                "elite_exponential": draws.take("exponential_"),
            }
            if not evaluate:
                numbers["action_noise"] = draws.take("randn")
            if self.case.shift:
                numbers["shift"] = _shift(draws.take("randint"))
        outputs = {"action": action, "mean": agent._prev_mean}
        return {**numbers, "observation": observation.unsqueeze(0), **outputs}

    @torch.no_grad()
    def _trajectory_value(self, task: int | None, row: int) -> dict[str, Tensor]:
        """The value of random trajectories, from s_0 of a row of the batch."""
        config, agent = self.config, self.agent
        tasks = None if task is None else torch.tensor([task])
        actions = 2 * torch.rand(config.horizon, config.num_samples, config.action_dim) - 1
        if self.case.multitask:
            actions *= self.model._action_masks[task]
        with Draws() as draws:
            latent = self.model.encode(self["batch/observation"][0, row : row + 1], tasks)
            value = agent._estimate_value(latent.repeat(config.num_samples, 1), actions, tasks)
            numbers = {
                "actions": actions,
                "terminal_policy_eps": draws.take("randn_like"),
                "q_pair": draws.take("randperm")[:2],
                "value": value,
            }
            if self.case.shift:
                numbers["shift"] = _shift(draws.take("randint"))
        return numbers

    def _update(self, step: int) -> dict[str, Tensor]:
        """One optimisation step with its draws, and the gradients that the optimisers saw."""
        config, case, agent = self.config, self.case, self.agent
        batch = [self[f"batch/{n}"] for n in ("observation", "action", "reward", "terminated")]
        tasks = [self["batch/task"]] if case.multitask else []
        with Draws() as draws, self._watched() as seen:
            metrics = agent._update(*batch, *tasks)
            numbers = {
                "td_policy_eps": draws.take("randn_like"),
                "td_q_pair": draws.take("randperm")[:2],
                "policy_eps": draws.take("randn_like"),
                "policy_q_pair": draws.take("randperm")[:2],
                **{f"metric_{name}": value for name, value in metrics.items()},
            }
            if case.shift:
                numbers["next_shift"] = _shift(draws.take("randint", config.horizon))
                numbers["shift"] = _shift(draws.take("randint"))
            if config.dropout:
                numbers["q_keep"] = draws.take("bernoulli").bool()
                numbers["policy_q_keep"] = draws.take("bernoulli").bool()
        gradients = {n: g for n, g in seen.items() if n.startswith("clipped_grad")}
        if case.multitask:
            numbers["td_target"] = seen["td_target"]
            numbers["task_emb_grad_left_by_policy"] = self.model._task_emb.weight.grad
            numbers["task_emb_weight"] = self.model._task_emb.weight
            embedding = "clipped_grad_model/_task_emb.weight"
            numbers[embedding] = gradients[embedding]
        return {**numbers, **gradients} if step == 0 else numbers

    @contextmanager
    def _watched(self) -> Iterator[dict[str, Tensor]]:
        """What passes inside an update: gradients before each optimiser's step, and TD targets."""
        agent, seen = self.agent, {}
        names = {parameter: name for name, parameter in self.model.named_parameters()}

        def keep_gradients(optimizer, args, kwargs):
            group = "clipped_grad_model" if optimizer is agent.optim else "clipped_grad_policy"
            for parameter in (p for g in optimizer.param_groups for p in g["params"]):
                seen[f"{group}/{names[parameter]}"] = parameter.grad.clone()

        def look_at_norms(optimizer, args, kwargs):
            if self.case.multitask:
                norms = self.model._task_emb.weight.norm(dim=1)
                self.rows_pushed_above_1 |= bool((norms > 1 + 1e-6).any())

        def td_target(*args):
            seen["td_target"] = type(agent)._td_target(agent, *args)
            return seen["td_target"]

        hooks = [
            agent.optim.register_step_pre_hook(keep_gradients),
            agent.pi_optim.register_step_pre_hook(keep_gradients),
            agent.optim.register_step_post_hook(look_at_norms),
        ]
        agent._td_target = td_target
        yield seen
        del agent._td_target
        for hook in hooks:
            hook.remove()


def _set_norms(rows: Tensor, norms: list[float]) -> None:
    """Give the rows ``[T, C]`` these norms."""
    rows *= (torch.tensor(norms) / rows.norm(dim=1)).unsqueeze(1)


def _shift(drawn: Tensor) -> Tensor:
    """Offsets ``[..., n, 2]`` (column, row) as they were drawn ``[..., n, 1, 1, 2]``."""
    return drawn.flatten(-4, -2).long()
