"""Checkpoints: what comes back, and what survives a save that dies."""

from __future__ import annotations

import dataclasses
import os
import shutil
import zipfile

import pytest
import torch
from tensordict import TensorDict
from tiny import SIZE, tiny_loss
from torchrl.checkpoint import Checkpoint, CheckpointError, CheckpointRotation
from torchrl.modules import MLP, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate

from torchrl_tdmpc.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from torchrl_tdmpc.durable import publish


class Run:
    """A TorchRL loss with functional and target parameters, and an Adam with two groups."""

    def __init__(self, seed: int, num_cells: int = 8):
        torch.manual_seed(seed)
        network = MLP(in_features=3, out_features=2, num_cells=[num_cells])
        actor = QValueActor(network, in_keys=["observation"], action_space="categorical")
        self.loss = DQNLoss(actor, action_space="categorical", delay_value=True)
        self.loss.make_value_estimator(gamma=0.9)
        self.target_update = SoftUpdate(self.loss, eps=0.9)
        first, *rest = list(self.loss.parameters())
        groups = [{"params": [first], "lr": 1e-2}, {"params": rest}]
        self.optimizer = torch.optim.Adam(groups, lr=3e-4)

    @property
    def components(self) -> dict:
        return {"loss": self.loss, "optimizer": self.optimizer}

    def update(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        flag = torch.zeros(4, 1, dtype=torch.bool)
        batch = TensorDict(
            observation=torch.randn(4, 3, generator=generator),
            action=torch.randint(2, (4,), generator=generator),
            next=TensorDict(
                observation=torch.randn(4, 3, generator=generator),
                reward=torch.randn(4, 1, generator=generator),
                done=flag,
                terminated=flag,
                batch_size=[4],
            ),
            batch_size=[4],
        )
        self.optimizer.zero_grad()
        self.loss(batch)["loss"].backward()
        self.optimizer.step()
        self.target_update.step()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.loss.state_dict().items()}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_training_goes_on_as_if_never_stopped(tmp_path):
    source, resumed = Run(seed=0), Run(seed=1)
    source.update(10)
    source.update(11)
    save_checkpoint(tmp_path, 2, source.components, metadata={"agent_steps": 2, "env": {"a": [1]}})
    resumed.update(12)
    metadata = load_checkpoint(tmp_path, resumed.components)
    assert metadata == {"agent_steps": 2, "env": {"a": [1]}}
    assert same(source.weights(), resumed.weights())
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [1e-2, 3e-4]
    before = source.weights()
    source.update(13)
    resumed.update(13)  # equal only if the moments, step counts and targets came back
    assert same(source.weights(), resumed.weights())
    assert not same(source.weights(), before)


def test_some_components_are_enough(tmp_path):
    source, player = Run(seed=0), Run(seed=1)
    source.update(10)
    path = save_checkpoint(tmp_path, 1, source.components)
    assert load_checkpoint(path, {"loss": player.loss}) == {}
    assert same(source.weights(), player.weights())
    assert not player.optimizer.state


def test_newest_checkpoints_are_kept(tmp_path):
    source, target = Run(seed=0), Run(seed=1)
    for step in (1000, 999_999, 20_000):
        save_checkpoint(tmp_path, step, source.components, metadata={"step": step}, keep_last=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-000000020000.torchrl", "checkpoint-000000999999.torchrl"]
    assert load_checkpoint(tmp_path, target.components) == {"step": 999_999}


def test_the_same_step_is_replaced(tmp_path):
    source, target = Run(seed=0), Run(seed=1)
    save_checkpoint(tmp_path, 5, source.components, metadata={"updates": 1})
    source.update(10)
    save_checkpoint(tmp_path, 5, source.components, metadata={"updates": 2})
    assert len(list(tmp_path.iterdir())) == 1
    assert load_checkpoint(tmp_path, target.components) == {"updates": 2}
    assert same(source.weights(), target.weights())


@pytest.mark.parametrize("next_step", [5, 6], ids=["same step", "next step"])
@pytest.mark.parametrize("death", ["write", "archive", "rename"])
def test_death_during_a_save_keeps_the_previous_checkpoint(tmp_path, monkeypatch, death, next_step):
    """The process is gone at once: nothing that would tidy up behind it gets to run."""
    source, target = Run(seed=0), Run(seed=1)
    save_checkpoint(tmp_path, 5, source.components, metadata={"updates": 1}, keep_last=1)
    saved = source.weights()
    source.update(10)

    def die(*args, **kwargs):
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        if death == "write":
            patch.setattr(torch, "save", die)
        elif death == "archive":
            patch.setattr(zipfile.ZipFile, "write", die)
        else:
            rename = os.replace
            patch.setattr(
                os, "replace", lambda a, b: die() if b.parent == tmp_path else rename(a, b)
            )
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, next_step, source.components, keep_last=1)

    assert load_checkpoint(tmp_path, target.components) == {"updates": 1}
    assert same(saved, target.weights())
    save_checkpoint(tmp_path, next_step, source.components, keep_last=1)  # and it tidies up
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{next_step:012d}.torchrl"]


def test_a_file_is_on_disk_before_its_name_and_the_name_after_it(tmp_path, monkeypatch):
    staged, path = tmp_path / "staged", tmp_path / "checkpoint"
    calls, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        inode = os.fstat(descriptor).st_ino
        calls.append(next(p.name for p in (staged, path, tmp_path) if inode_of(p) == inode))
        fsync(descriptor)

    def recorded_replace(*paths):
        calls.append("replace")
        replace(*paths)

    def inode_of(path):
        return path.stat().st_ino if path.exists() else None

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    staged.write_bytes(b"1")
    publish(staged, path)
    assert calls == ["staged", "replace", tmp_path.name]
    assert path.read_bytes() == b"1" and not staged.exists()


def test_a_full_disk_is_an_error_of_the_system_and_keeps_the_previous_checkpoint(
    tmp_path, monkeypatch
):
    source, target = Run(seed=0), Run(seed=1)
    save_checkpoint(tmp_path, 5, source.components, metadata={"updates": 1}, keep_last=1)
    saved = source.weights()
    source.update(10)

    def full(*args, **kwargs):
        raise RuntimeError("unexpected pos 704 vs 662")  # PyTorch's words for a full disk

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"checkpoint-0+6.torchrl cannot be written: .* 704"):
            save_checkpoint(tmp_path, 6, source.components, keep_last=1)
    assert load_checkpoint(tmp_path, target.components) == {"updates": 1}
    assert same(saved, target.weights())


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    run = Run(seed=0)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        load_checkpoint(tmp_path, run.components)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.torchrl", run.components)
    junk = tmp_path / "weights.pt"
    torch.save(run.loss.state_dict(), junk)  # a zip file too, but not ours
    with pytest.raises(CheckpointError, match=r"weights\.pt is no checkpoint"):
        load_checkpoint(junk, run.components)
    path = save_checkpoint(tmp_path, 1, run.components)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"checkpoint-000000000001.* truncated or altered"):
        load_checkpoint(path, run.components)


def test_no_altered_byte_is_half_loaded(tmp_path):
    """A checkpoint with one other byte is refused, or the byte means nothing (a date, padding)."""
    source, target = Run(seed=0), Run(seed=1)
    source.update(10)
    path = save_checkpoint(tmp_path, 1, source.components)
    content, before = path.read_bytes(), target.weights()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for position in torch.randint(len(content), (200,), generator=generator).tolist():
        altered = bytearray(content)
        altered[position] ^= 1 << (position % 8)
        path.write_bytes(altered)
        try:
            load_checkpoint(path, target.components)
        except CheckpointError as error:
            assert "truncated or altered" in str(error) and "\n" not in str(error)
            assert same(before, target.weights()) and not target.optimizer.state
            refused += 1
        else:
            assert same(source.weights(), target.weights())
            target = Run(seed=1)
    assert refused > 150


def test_what_does_not_fit_is_named(tmp_path):
    run = Run(seed=0)
    path = save_checkpoint(tmp_path, 1, {"loss": run.loss})
    with pytest.raises(CheckpointError, match=r"missing=\['optimizer'\]"):
        load_checkpoint(path, run.components)
    with pytest.raises(CheckpointError, match="component 'loss'"):
        load_checkpoint(path, {"loss": Run(seed=0, num_cells=4).loss})
    with pytest.raises(ValueError, match="step is -1"):
        save_checkpoint(tmp_path, -1, run.components)


class Touch:
    """A component whose pickled state runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)

    def state_dict(self):
        return {"payload": self}

    def load_state_dict(self, state_dict):
        pass


def test_loading_never_runs_code(tmp_path):
    touch = Touch(tmp_path / "executed")
    path = save_checkpoint(tmp_path, 1, {"loss": touch})
    with pytest.raises(CheckpointError, match="weights_only"):
        load_checkpoint(path, {"loss": touch})
    # TorchRL's other payloads may hold pickled fields: refused before anything is read.
    other = Checkpoint(format="archive", loss=Run(seed=0).loss)
    path = CheckpointRotation(tmp_path, keep_last=1).save(other, step=2)
    with pytest.raises(CheckpointError, match="not saved by save_checkpoint"):
        load_checkpoint(path, {"loss": Run(seed=1).loss})
    assert not touch.path.exists()


def test_a_part_of_a_loss_is_loaded_alone(tmp_path):
    source, other = tiny_loss(seed=0), tiny_loss(seed=1)
    save_checkpoint(tmp_path, 1, {"loss": source})
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    load_checkpoint(tmp_path, {"loss": other}, part="world_model.encoder")
    expected = source.state_dict()
    for name, weight in other.state_dict().items():
        is_part = name.startswith("world_model_params.encoder.")
        assert torch.equal(weight, expected[name] if is_part else before[name]), name
    encoders = [loss.world_model.encoder.state_dict() for loss in (source, other)]
    torch.testing.assert_close(*encoders, rtol=0, atol=0)


def test_a_part_that_is_not_there_or_does_not_fit_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, {"loss": tiny_loss()})
    with pytest.raises(ValueError, match=r"part is 'world_model\.eyes', but the loss has no such"):
        load_checkpoint(tmp_path, {"loss": tiny_loss()}, part="world_model.eyes")
    wide = tiny_loss(size=dataclasses.replace(SIZE, enc_dim=20))
    before = {name: weight.clone() for name, weight in wide.state_dict().items()}
    message = r"encoder does not fit: .*0\.bias has shape \[12\] in the checkpoint and \[20\] here"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, {"loss": wide}, part="world_model.encoder")
    torch.testing.assert_close(wide.state_dict(), before, rtol=0, atol=0)


def test_only_a_whole_regular_file_with_a_small_manifest_is_read(tmp_path):
    run = Run(seed=0)
    path = save_checkpoint(tmp_path, 1, {"loss": run.loss})
    os.mkfifo(tmp_path / "fifo")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb", "w") as copy:
        for entry in source.infolist():
            copy.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "long", "w") as archive:
        archive.writestr("manifest.json", b" " * (2**24 + 1))
    for name, content in (("list", b"[1]"), ("word", b"{"), ("deep", b"[" * 10**5)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("manifest.json", content)
    told = {"fifo": "is no regular file", "bomb": "an entry is compressed", "long": "more than 16,"}
    for name in ("fifo", "bomb", "long", "list", "word", "deep"):
        with pytest.raises(CheckpointError, match=told.get(name, "is no checkpoint")) as error:
            load_checkpoint(tmp_path / name, {"loss": run.loss})
        assert "\n" not in str(error.value)


def test_another_shape_is_told_in_one_sentence(tmp_path):
    path = save_checkpoint(tmp_path, 1, Run(seed=0).components)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, Run(seed=0, num_cells=4).components)
    message = str(error.value)
    assert "[8, 3] in the file and [4, 3] here" in message and "\n" not in message
    assert str(path) in message and len(message) < 400
