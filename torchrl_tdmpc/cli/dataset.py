"""Episodes on disk: ``tdmpc2-dataset export RUN FOLDER``, and ``show``, ``join`` and ``split``."""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from omegaconf import OmegaConf
from torchrl.checkpoint import CheckpointError

from torchrl_tdmpc.checkpoints import ReplayLog, find_checkpoint, load_checkpoint, read_metadata
from torchrl_tdmpc.cli.fine_tuning import place_as_recorded
from torchrl_tdmpc.cli.help import DATASET_EXAMPLES
from torchrl_tdmpc.cli.parts import make_replay
from torchrl_tdmpc.cli.report import markdown
from torchrl_tdmpc.cli.settings import resolve
from torchrl_tdmpc.data import (
    EpisodeFiles,
    join_datasets,
    minari_episodes,
    named_tasks,
    split_dataset,
    storage_episodes,
    stored_episodes,
    write_episodes,
)
from torchrl_tdmpc.envs import load_tasks

BARS = " ▁▂▃▄▅▆▇█"


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
    task = place_as_recorded(task, checkpoint, metadata)
    if task.frame_channels is not None:
        raise ValueError(f"{run} observes pixels; data sets hold vectors.")
    replay = make_replay(config, task)
    load_checkpoint(checkpoint, {"replay": ReplayLog(replay, checkpoint.parent / "replay")})
    episodes = stored_episodes(replay)
    write_episodes(folder, episodes, [task.name])
    print(f"{len(episodes)} episodes of {task.name} in {folder}")


def import_(source: str, folder: str, task: str) -> None:
    """Write the finished episodes of a TorchRL storage, or of Minari, as a data set.

    Args:
        source: a folder of :func:`storage_episodes`, or ``minari:NAME``.
        folder: where to.
        task: the name of the task that they are of.

    Raises:
        DatasetError: the source does not fit.
        FileExistsError: the folder holds a data set already.
        ImportError: Minari is not installed.
    """
    name = source.removeprefix("minari:")
    episodes = storage_episodes(source) if name == source else minari_episodes(name)
    write_episodes(folder, episodes, [task])
    print(f"{len(episodes)} episodes of {task} in {folder}")


def show(folder: str) -> None:
    """Print the tasks of a data set, with the number, lengths and returns of their episodes.

    Raises:
        DatasetError: a file is damaged, or does not fit.
        FileNotFoundError: there is no data set.
    """
    files = EpisodeFiles(folder)
    names = files.tasks or []
    lengths, returns = defaultdict(list), defaultdict(list)
    for _, block in files.blocks():
        totals = block["reward"][:, 1:].double().sum(1)
        for index, total in zip(block["task"][:, 0].tolist(), totals.tolist()):
            task = names[index] if 0 <= index < len(names) else str(index)
            lengths[task].append(block.shape[1] - 1)
            returns[task].append(total)
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
                "from lowest to highest": histogram(values),
            }
        )
    print(markdown(rows))


def histogram(values: Sequence[float], num_bins: int = 20) -> str:
    """A bar for each of some bins of equal width, from the least value to the largest.

    Examples:
        >>> histogram([0.0, 1.0, 1.1, 1.2, 3.0, 4.0], num_bins=4)
        '▃█ ▆'
    """
    low, high = min(values), max(values)
    counts = [0] * num_bins
    for value in values:
        place = 0 if high == low else int((value - low) / (high - low) * num_bins)
        counts[min(place, num_bins - 1)] += 1
    return "".join(BARS[math.ceil(count / max(counts) * (len(BARS) - 1))] for count in counts)


def join(sources: Sequence[str], to: str, steps: int | None) -> None:
    """Write several data sets as one, padded to the widest; see :func:`join_datasets`."""
    tasks = join_datasets(sources, to, steps=steps)
    print(f"{EpisodeFiles(to).num_episodes} episodes of {', '.join(tasks)} in {to}")


def split(source: str, folder: str, tasks: str | None) -> None:
    """Write the episodes of each task into a folder of its own; see :func:`split_dataset`."""
    names = named_tasks(EpisodeFiles(source)) if tasks is None else as_names(tasks)
    loaded = load_tasks(names)
    sizes = zip(loaded.observation_dims, loaded.action_dims)
    dims = dict(zip(loaded.names, sizes, strict=True))
    written = split_dataset(source, folder, dims, loaded.names)
    print(f"episodes of {', '.join(written)} in folders of {folder}")


def as_names(tasks: str) -> str | list[str]:
    """A published set's name, or a list of names, from the command line.

    Examples:
        >>> as_names("mt30"), as_names("walker-stand,cup-catch")
        ('mt30', ['walker-stand', 'cup-catch'])
    """
    return tasks if tasks in ("mt30", "mt80") else tasks.split(",")


def main(arguments: list[str] | None = None) -> None:
    """The console script ``tdmpc2-dataset``."""
    parser = argparse.ArgumentParser(
        prog="tdmpc2-dataset",
        description="Write, print, join and split data sets of stored episodes.",
        epilog=DATASET_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary)

    command = add("export", "Write the finished episodes of a run as a data set.")
    command.add_argument("run", help="the run's folder, or one of its checkpoints")
    command.add_argument("folder", help="the data set to write")
    command = add("import", "Write the episodes of a TorchRL storage, or of Minari, as a data set.")
    command.add_argument("source", help="folder of a memory-mapped storage, or minari:NAME")
    command.add_argument("folder", help="the data set to write")
    command.add_argument("--task", required=True, help="name of the task of all its episodes")
    command = add("show", "Print tasks, episodes, lengths and returns of a data set.")
    command.add_argument("folder", help="the data set")
    command = add("join", "Write several data sets as one data set of several tasks.")
    command.add_argument("sources", nargs="+", metavar="folder", help="the data sets to join")
    command.add_argument("--to", required=True, help="the data set to write")
    command.add_argument(
        "--steps", type=int, help="take only the episodes of this many agent steps"
    )
    command = add("split", "Write each task of a data set into a folder of its own.")
    command.add_argument("source", help="the data set to split")
    command.add_argument("folder", help="the folder that gets a data set for each task")
    command.add_argument(
        "--tasks", help="mt30, or NAME,NAME,...: names by index, if the data set has none"
    )
    given = vars(parser.parse_args(arguments))
    try:
        run = {"export": export, "import": import_, "show": show, "join": join, "split": split}
        run[given.pop("command")](**given)
    except (CheckpointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
