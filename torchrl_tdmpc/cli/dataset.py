"""Episodes on disk: ``tdmpc2-dataset export RUN FOLDER``, ``tdmpc2-dataset show FOLDER``."""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

from omegaconf import OmegaConf
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import ReplayLog, find_checkpoint, load_checkpoint, read_metadata
from torchrl_tdmpc.cli.parts import make_replay
from torchrl_tdmpc.cli.report import markdown
from torchrl_tdmpc.cli.settings import resolve
from torchrl_tdmpc.data import EpisodeFiles, stored_episodes, write_episodes


def export(run: str, folder: str) -> None:
    """Write the finished episodes of a run's newest checkpoint as a data set.

    Args:
        run: the run's folder, or one of its checkpoints.
        folder: where to.

    Raises:
        CheckpointError: the checkpoint is damaged, or of no run.
        FileExistsError: the folder holds a data set already.
        ValueError: the run observes pixels.
    """
    checkpoint = find_checkpoint(run, run)
    metadata = read_metadata(checkpoint)
    if "segments" not in metadata:
        raise ValueError(f"{checkpoint} holds networks, but no run.")
    record = OmegaConf.create(metadata["config"])
    record.device, record.replay.device, record.resume = "cpu", "cpu", str(checkpoint)
    config, task = resolve(record)
    if task.frame_channels is not None:
        raise ValueError(f"{run} observes pixels; data sets hold vectors.")
    replay = make_replay(config, task)
    load_checkpoint(checkpoint, {"replay": ReplayLog(replay, checkpoint.parent / "replay")})
    episodes = stored_episodes(replay)
    write_episodes(folder, episodes, [task.name])
    print(f"{len(episodes)} episodes of {task.name} in {folder}")


def show(folder: str) -> None:
    """Print the tasks of a data set, with the number, lengths and returns of their episodes.

    Raises:
        DatasetError: a file is damaged, or does not fit.
        FileNotFoundError: there is no data set.
    """
    files = EpisodeFiles(folder)
    names = files.tasks
    lengths, returns = defaultdict(list), defaultdict(list)
    for episode in files:
        index = int(episode["task"][0])
        task = str(index) if names is None or index >= len(names) else names[index]
        lengths[task].append(len(episode))
        returns[task].append(float(episode["next", "reward"].sum()))
    rows = []
    for task, values in sorted(returns.items()):
        shortest, longest = min(lengths[task]), max(lengths[task])
        rows.append(
            {
                "task": task,
                "episodes": str(len(values)),
                "agent steps": f"{sum(lengths[task]):,}",
                "length": str(longest) if shortest == longest else f"{shortest} to {longest}",
                "return": f"{statistics.fmean(values):.1f}",
                "lowest": f"{min(values):.1f}",
                "highest": f"{max(values):.1f}",
            }
        )
    print(markdown(rows))


def main(arguments: list[str] | None = None) -> None:
    """The console script ``tdmpc2-dataset``."""
    parser = argparse.ArgumentParser(prog="tdmpc2-dataset", description="Episodes on disk.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("export", help="write the episodes of a run as a data set")
    command.add_argument("run", help="a run's folder, or one of its checkpoints")
    command.add_argument("folder", help="where to write the data set")
    command = commands.add_parser("show", help="print what is in a data set")
    command.add_argument("folder", help="the data set")
    given = vars(parser.parse_args(arguments))
    try:
        {"export": export, "show": show}[given.pop("command")](**given)
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
