from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from torchrl.trainers.algorithms.configs import *  # noqa: F403

RECIPE = Path(__file__).parents[1] / "sota-implementations" / "tdmpc2"
_has_dm_control = importlib.util.find_spec("dm_control") is not None
_has_hydra = importlib.util.find_spec("hydra") is not None


@pytest.mark.skipif(not _has_dm_control, reason="dm_control is not installed")
@pytest.mark.skipif(not _has_hydra, reason="hydra is not installed")
class TestTdMpc2Recipe:
    def _make_trainer(self, *overrides):
        import hydra

        with hydra.initialize_config_dir(str(RECIPE), version_base="1.3"):
            cfg = hydra.compose(
                "config",
                overrides=[
                    "world_model.latent_dim=8",
                    "world_model.encoder_dim=8",
                    "world_model.mlp_dim=8",
                    "trainer.logger=null",
                    "trainer.progress_bar=false",
                    *overrides,
                ],
            )
        return cfg, hydra.utils.instantiate(cfg.trainer)

    def test_published_settings(self):
        cfg, trainer = self._make_trainer()
        loss, planner = trainer.loss_module, trainer.planner
        trainer.collector.shutdown()
        assert (loss.horizon, loss.rho) == (3, 0.5)
        assert loss.discount.item() == pytest.approx((500 / 5 - 1) / (500 / 5))
        coefficients = (loss.consistency_coef, loss.reward_coef, loss.value_coef)
        assert coefficients == (20.0, 0.1, 0.1)
        assert (loss.entropy_coef, loss.scale.tau) == (1e-4, 0.01)
        q_ensemble = loss.q_ensemble
        support = (q_ensemble.num_bins, q_ensemble.vmin, q_ensemble.vmax)
        assert (q_ensemble.num_q, *support) == (5, 101, -10.0, 10.0)

        search = (planner.num_samples, planner.num_elites, planner.num_pi_trajs)
        assert (planner.iterations, *search) == (6, 512, 64, 24)
        assert (planner.min_std, planner.max_std, planner.temperature) == (0.05, 2, 0.5)

        stepper = trainer.optimization_stepper
        groups = stepper.optimizer_model.param_groups
        assert [group["lr"] for group in groups] == pytest.approx([9e-5, 3e-4])
        assert [group["eps"] for group in groups] == [1e-8, 1e-8]
        (actor,) = stepper.optimizer_actor.param_groups
        assert (actor["lr"], actor["eps"]) == (3e-4, 1e-5)
        assert (stepper.target_tau, trainer.clip_norm) == (0.01, 20.0)

        # 500k environment steps with two for each action; 10 episodes an evaluation
        assert cfg.training_env.base_env.frame_skip * trainer.total_frames == 500_000
        assert trainer.seed_pretrain_steps == 5 * cfg.episode_length
        assert trainer._tdmpc2_replay_buffer.batch_size == 256 * 3
        assert (cfg.evaluation.episodes, cfg.evaluation.every) == (10, 50_000)

    def test_one_update_for_each_step(self):
        # 6 random steps, as many updates on them, and then one for each of 4 steps
        _, trainer = self._make_trainer(
            "planner.num_samples=4",
            "planner.num_elites=2",
            "planner.num_pi_trajs=1",
            "planner.iterations=1",
            "collector.init_random_frames=6",
            "collector.total_frames=10",
            "trainer.batch_size=4",
        )
        trainer.train()
        assert trainer.collected_frames == 10
        assert trainer.optimization_stepper.update_count == 10


if __name__ == "__main__":
    pytest.main()
