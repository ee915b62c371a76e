"""Checkpoints of the official implementation: what is read, what is written, what is refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_loss, tiny_networks

from torchrl_tdmpc import SymlogTwoHot, TDMPC2Loss, make_networks
from torchrl_tdmpc.checkpoints import load_official, official_weights, save_official
from torchrl_tdmpc.modules import ModelSize, official_order
from torchrl_tdmpc.trainers import TDMPC2Update

CHECKPOINTS = Path(__file__).parent / "reference/checkpoints"
FORMATS = ("newer_format", "older_format")
GROUPS = ("_Qs.params", "_detach_Qs_params", "_target_Qs_params")
EXTRAS = {f"{group}.__{name}" for group in GROUPS for name in ("batch_size", "device")}

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def published_entries(name="newer_format"):
    return torch.load(CHECKPOINTS / f"{name}.pt", weights_only=True)["model"]


def written(tmp_path, entries):
    torch.save({"model": entries}, tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


def identical(ours, theirs):
    if not isinstance(ours, torch.Tensor):
        return ours == theirs
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_official_outputs(name):
    loss, observation_shape, action_dim = load_official(CHECKPOINTS / f"{name}.pt", discount=0.99)
    expected = dict(np.load(CHECKPOINTS / "expected.npz"))
    expected = {key: torch.from_numpy(value) for key, value in expected.items()}
    observation, action = expected.pop("observation"), expected["policy_mean"]
    latent = loss.world_model.encode(observation)
    order = official_order(latent.shape[-1], 8)
    ours = {
        "latent": latent[..., order.argsort()],
        "policy_mean": loss.policy_prior.mode(latent),
        "reward": loss.world_model.reward(latent, action),
        "next_latent": loss.world_model.next(latent, action)[..., order.argsort()],
        "q_values": loss.q_ensemble.value(latent, action),
        "q_values_target": loss.q_ensemble.value(
            latent, action, params=loss.target_q_ensemble_params
        ),
    }
    assert observation_shape == observation.shape[1:] and action_dim == action.shape[1]
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=2e-6, atol=1e-6, msg=key)


def test_both_formats_hold_the_same_agent():
    newer, older = (load_official(CHECKPOINTS / f"{name}.pt", discount=0.99) for name in FORMATS)
    ours, theirs = official_weights(newer.loss), official_weights(older.loss)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for loss in (newer.loss, older.loss):
        assert (loss.policy_prior.log_std_min, loss.policy_prior.log_std_max) == (-10.0, 2.0)


@pytest.mark.parametrize("with_extras", [False, True])
def test_round_trip_is_exact(tmp_path, with_extras):
    entries = published_entries()
    if with_extras:
        entries |= {name: torch.Size([5]) for name in EXTRAS if name.endswith("batch_size")}
        entries |= {name: None for name in EXTRAS if name.endswith("device")}
    loss = load_official(written(tmp_path, entries), discount=0.99).loss
    save_official(tmp_path / "again.pt", loss)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == {"model"}
    assert again["model"].keys() == entries.keys() | EXTRAS
    assert all(identical(again["model"][name], entry) for name, entry in entries.items())

    ours = official_weights(load_official(tmp_path / "again.pt", discount=0.99).loss)
    assert all(torch.equal(ours[name], w) for name, w in official_weights(loss).items())


def test_an_older_file_is_written_as_a_newer_one(tmp_path):
    save_official(
        tmp_path / "newer.pt", load_official(CHECKPOINTS / "older_format.pt", discount=0.99).loss
    )
    entries, newer = published_entries(), published_entries(tmp_path / "newer")
    assert newer.keys() == entries.keys() | EXTRAS
    assert all(identical(newer[name], entry) for name, entry in entries.items())


@pytest.mark.parametrize(
    ("shape", "size", "episodic", "bins"),
    [
        ((3,), ModelSize(12, 16, 32, 2, 2), True, 101),
        ((4,), ModelSize(8, 8, 8, 4, 3), False, 7),
        ((9, 64, 64), ModelSize(1, 12, 32, 2, 5), True, 51),
    ],
)
def test_sizes_heads_and_encoder_are_inferred(tmp_path, shape, size, episodic, bins):
    two_hot = SymlogTwoHot(bins, -5, 5)
    networks = make_networks(
        shape, 2, size, episodic=episodic, two_hot=two_hot, log_std_min=-4.5, log_std_max=1.0
    )
    loss = TDMPC2Loss(*networks, discount=0.95)
    for target in loss.target_q_ensemble_params.values(True, True):
        target.data.normal_()
    save_official(tmp_path / "agent.pt", loss)
    before = torch.get_rng_state()
    agent = load_official(tmp_path / "agent.pt", discount=0.9, vmin=-5, vmax=5, rho=0.7)
    assert torch.equal(before, torch.get_rng_state())
    assert agent.observation_shape == shape and agent.action_dim == 2
    assert (agent.loss.discount, agent.loss.rho) == (0.9, 0.7)
    assert agent.loss.world_model.two_hot == two_hot == agent.loss.q_ensemble.two_hot
    assert agent.loss.world_model.episodic == episodic
    assert agent.loss.policy_prior.log_std_min == -4.5 and agent.loss.policy_prior.log_std_max == 1
    ours, theirs = agent.loss.state_dict(), loss.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_simnorm_is_an_argument(tmp_path):
    save_official(tmp_path / "agent.pt", TDMPC2Loss(*tiny_networks(simnorm_dim=4), discount=0.9))
    agent = load_official(tmp_path / "agent.pt", discount=0.9, simnorm_dim=4)
    latent = agent.loss.world_model.encode(torch.randn(5, *agent.observation_shape))
    torch.testing.assert_close(latent.unflatten(-1, (4, -1)).sum(-2), torch.ones(5, 4))


def test_dropout_is_an_argument(tmp_path):
    save_official(tmp_path / "agent.pt", tiny_loss())
    agent = load_official(tmp_path / "agent.pt", discount=0.9, dropout=0.3)
    assert agent.loss.q_ensemble.dropout == 0.3


def test_an_update_keeps_the_targets_that_were_loaded():
    loss = load_official(CHECKPOINTS / "newer_format.pt", discount=0.99).loss
    before = {name: weight.clone() for name, weight in official_weights(loss).items()}
    TDMPC2Update(loss)
    after = official_weights(loss)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    target = before["_target_Qs_params.0.weight"]
    assert not torch.equal(target, before["_Qs.params.0.weight"])


def without(name):
    return lambda entries: entries.pop(name)


def with_entry(name, entry):
    return lambda entries: entries.update({name: entry})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("newer_format", without("_pi.1.ln.bias"), ("no entry '_pi.1.ln.bias'", "[24]")),
        ("newer_format", without("_dynamics.2.weight"), ("'_dynamics.2.weight'", "[32, 24]")),
        ("newer_format", without("_encoder.state.0.weight"), ("'_encoder.state.0.weight'",)),
        ("newer_format", without("_encoder.state.1.bias"), ("'_encoder.state.1.bias'", "[32]")),
        ("newer_format", without("_target_Qs_params.2.bias"), ("'_target_Qs_params.2.bias'",)),
        ("newer_format", without("_detach_Qs_params.0.bias"), ("'_detach_Qs_params.0.bias'",)),
        ("newer_format", without("log_std_dif"), ("'log_std_dif'", "of shape []")),
        ("older_format", without("_Qs.params.9"), ("no entry '_Qs.params.9'", "[5, 101]")),
        ("older_format", without("_target_Qs.params.6"), ("'_target_Qs.params.6'", "[5, 24]")),
        (
            "newer_format",
            with_entry("_dynamics.2.bias", torch.zeros(33)),
            ("'_dynamics.2.bias'", "of shape [33]", "must be float32 of shape [32]"),
        ),
        (
            "newer_format",
            with_entry("_dynamics.2.weight", torch.zeros(33, 24)),
            ("'_dynamics.2.weight'", "of shape [33, 24]", "shape [32, 24]"),
        ),
        (
            "newer_format",
            with_entry("_Qs.params.0.weight", torch.zeros(5, 24, 36)),
            ("'_Qs.params.0.weight'", "[5, 24, 36]", "[5, 24, 35]"),
        ),
        (
            "older_format",
            with_entry("_Qs.params.1", torch.zeros(4, 24)),
            ("'_Qs.params.1'", "[4, 24]", "[5, 24]"),
        ),
        (
            "newer_format",
            with_entry("_pi.2.bias", torch.zeros(6, dtype=torch.float64)),
            ("'_pi.2.bias'", "float64", "float32 of shape [6]"),
        ),
        ("newer_format", with_entry("_pi.0.bias", None), ("'_pi.0.bias'", "a NoneType")),
        (
            "newer_format",
            with_entry("log_std_min", torch.zeros(2)),
            ("'log_std_min'", "[2]", "int64 or float32 of shape []"),
        ),
        (
            "newer_format",
            with_entry("_task_emb.weight", torch.zeros(3, 96)),
            ("is of 3 tasks; discount is 0.99 and must have a number for each",),
        ),
        (
            "newer_format",
            with_entry("_detach_Qs_params.1.bias", torch.zeros(5, 24)),
            ("'_detach_Qs_params.1.bias'", "differs from '_Qs.params.1.bias'"),
        ),
        ("newer_format", lambda entries: entries.clear(), ("no entry '_dynamics.2.weight'",)),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, change, words):
    entries = published_entries(name)
    change(entries)
    path = written(tmp_path, entries)
    with pytest.raises(ValueError) as error:
        load_official(path, discount=0.99)
    message = str(error.value)
    assert all(word in message for word in (*words, str(path))), message
    assert "\n" not in message


class Touch:
    """Pickled, it runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_what_is_no_such_file_is_refused(tmp_path):
    path = tmp_path / "agent.pt"
    with pytest.raises(FileNotFoundError, match=r"agent\.pt"):
        load_official(path, discount=0.99)
    torch.save({"model": {**published_entries(), "payload": Touch(tmp_path / "executed")}}, path)
    with pytest.raises(ValueError, match=r"agent\.pt cannot be read as a file of tensors alone"):
        load_official(path, discount=0.99)
    assert not (tmp_path / "executed").exists()
    for content in (b"", b"no checkpoint", (CHECKPOINTS / "newer_format.pt").read_bytes()[:-999]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"agent\.pt cannot be read"):
            load_official(path, discount=0.99)
    for content in ([1.0], {"agent": published_entries()}, {"model": torch.zeros(2)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"agent\.pt has no entry 'model'"):
            load_official(path, discount=0.99)


def test_only_published_networks_are_written(tmp_path):
    encoder = torch.nn.Linear(3, 16)
    networks = make_networks((3,), 2, ModelSize(8, 8, 16, 2, 2), encoder=encoder)
    with pytest.raises(ValueError, match=r"the loss has no entry '_encoder\.state\.0\.weight'"):
        save_official(tmp_path / "agent.pt", TDMPC2Loss(*networks, discount=0.9))
    with pytest.raises(ValueError, match="float64"):
        save_official(tmp_path / "agent.pt", tiny_loss().double())
    assert not (tmp_path / "agent.pt").exists()


def test_no_altered_bit_is_loaded(tmp_path):
    """A file with one other bit is refused, or the bit means nothing (a date, padding)."""
    content = (CHECKPOINTS / "newer_format.pt").read_bytes()
    expected = official_weights(load_official(CHECKPOINTS / "newer_format.pt", discount=0.9).loss)
    generator, path, refused = torch.Generator().manual_seed(0), tmp_path / "agent.pt", 0
    for position in torch.randint(len(content), (60,), generator=generator).tolist():
        altered = bytearray(content)
        altered[position] ^= 1 << (position % 8)
        path.write_bytes(altered)
        try:
            loss = load_official(path, discount=0.9).loss
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
        else:
            assert all(torch.equal(w, expected[n]) for n, w in official_weights(loss).items())
    assert refused > 50


SPARSE = torch.zeros(24).to_sparse()
GIANT = torch.zeros(1).expand(2**40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_entry("_pi.0.bias", torch.full((24,), torch.nan)), "'_pi.0.bias' .* NaN or infinity"),
        (with_entry("_pi.0.bias", torch.full((24,), torch.inf)), "'_pi.0.bias' .* NaN or infinity"),
        (with_entry("_pi.0.bias", SPARSE), "'_pi.0.bias' .* is no plain tensor"),
        (with_entry("_pi.0.bias", GIANT), "'_pi.0.bias' .* is no plain tensor"),
        (with_entry("_pi.0.bias", torch.zeros(24, dtype=torch.complex64)), "must be float32"),
        (with_entry(7, torch.zeros(1)), "entry 7; its entries must have words as names"),
        (with_entry("log_std_min", torch.tensor(torch.nan)), "log_std_min is nan"),
        (with_entry("_dynamics.2.bias", torch.zeros(0)), "'_dynamics.2.bias'"),
        (lambda e: e.update({n: w[:0] for n, w in e.items() if w.dim()}), "is 0; it must be"),
        # Few numbers that claim to be a giant: refused before its memory is asked for
        (lambda e: e.update({n: torch.empty(2**40, 0) for n in e}), "read 0 numbers"),
        (with_entry("_encoder.state.0.weight", torch.zeros(2**24, 1)), "'_encoder.state"),
    ],
)
def test_crafted_entries_are_refused_in_a_sentence(tmp_path, change, words):
    entries = published_entries()
    change(entries)
    path = written(tmp_path, entries)
    with pytest.raises(ValueError, match=words) as error:
        load_official(path, discount=0.99)
    assert "\n" not in str(error.value)


def test_what_is_no_regular_file_or_a_bomb_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "fifo.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("agent/data.pkl", bytes(2**20))
    with zipfile.ZipFile(tmp_path / "pickle.pt", "w") as archive:
        archive.writestr("agent/data.pkl", bytes(2**20 + 1))
    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(2**36)
    (tmp_path / "folder.pt").mkdir()
    told = {
        "fifo.pt": "is no regular file",
        "bomb.pt": "an entry is compressed",
        "pickle.pt": "has 1,048,577 bytes, more than 1,048,576",
        "large.pt": "has 68,719,476,736 bytes, more than the",
        "folder.pt": "is a folder",
    }
    for name, words in told.items():
        with pytest.raises(ValueError, match=words):
            load_official(tmp_path / name, discount=0.99)
    with pytest.raises(ValueError, match="is no regular file"):
        load_official("/dev/zero", discount=0.99)
