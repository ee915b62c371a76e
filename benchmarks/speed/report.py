"""From timings to medians, ratios, a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

PEER = "torchrl-nightly"
RATIO_TARGETS = {f"as fast as {PEER}": 1.0}  # lines in the plot
HEADS_TIME, HEADS_PARAMETERS = 1.05, 260_000  # what five auxiliary heads may cost at size 5
NAMES = {
    "plan 1": "plan, 1 env",
    "plan 4": "plan, 4 envs",
    "plan 16": "plan, 16 envs",
    "update": "update",
}


class Spread(NamedTuple):
    """The median over rounds, and the extremes."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """``2.40 (2.31-2.55)``."""
        return f"{digits(self.median)} ({digits(self.low)}-{digits(self.high)})"


def spread(values: Iterable[float]) -> Spread | None:
    """Median and extremes; None of nothing."""
    values = list(values)
    return Spread(median(values), min(values), max(values)) if values else None


def digits(value: float) -> str:
    """Three digits that mean something, and no exponent."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


class Records:
    """What the processes measured, looked up by round."""

    def __init__(self, records: Sequence[dict[str, Any]]):
        self.records = records

    def select(self, **which: Any) -> dict[int, list[dict]]:
        """By round, the values of every process of this kind."""
        found: dict[int, list[dict]] = {}
        for record in self.records:
            if all(record[key] == value for key, value in which.items()):
                found.setdefault(record["round"], []).append(record["values"])
        return found

    def rounds(self, name: str, **which: Any) -> dict[int, float]:
        """By round, the median of a measured quantity."""
        found = {
            number: [x for values in processes for x in values.get(name, [])]
            for number, processes in self.select(**which).items()
        }
        return {number: median(values) for number, values in found.items() if values}

    def ratio(self, name: str, **ours: Any) -> Spread | None:
        """How many times as long as ours the peer takes, by round."""
        peer = self.rounds(name, what="compute", who="peer", size=ours["size"])
        mine = self.rounds(name, what="compute", who="ours", **ours)
        return spread(peer[number] / mine[number] for number in mine if number in peer)

    def heads(self, **which: Any) -> Spread | None:
        """How many times as long an update with heads takes: the median of pairs, by round."""
        return spread(
            median(more / less for more, less in zip(values["with heads"], values["plain"]))
            for processes in self.select(what="heads", **which).values()
            for values in processes
        )

    def distinct(self, key: str, **which: Any) -> list:
        """The values of a key, as they came."""
        chosen = (r for r in self.records if all(r[k] == v for k, v in which.items()))
        return list(dict.fromkeys(record[key] for record in chosen))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; None is an empty cell."""
    lines = [head, ["---"] + (len(head) - 1) * ["---:"], *rows]
    return "\n".join(f"| {' | '.join('' if x is None else str(x) for x in x)} |" for x in lines)


def planner_and_update(records: Records, size: int) -> str:
    """Milliseconds, and ratios to the peer."""
    settings = records.distinct("setting", what="compute", who="ours", size=size)
    variants = [("peer", "off-float32"), *(("ours", setting) for setting in settings)]
    times, ratios = [], []
    for name, label in NAMES.items():
        found = (
            records.rounds(name, what="compute", who=who, size=size, setting=setting)
            for who, setting in variants
        )
        times.append([label, *(spread(by_round.values()) for by_round in found)])
        ratios.append([label, *(records.ratio(name, size=size, setting=s) for s in settings)])
    theirs, ours = (
        f"{records.rounds('parameters', what='compute', who=who, size=size)[0]:,.0f}"
        for who in ("peer", "ours")
    )
    return (
        f"## Planner and update, size {size}\n\n"
        f"Parameters: {PEER} {theirs}, ours {ours}.\n\nMilliseconds:\n\n"
        f"{table(['', PEER, *settings], times)}\n\n"
        f"How many times as fast as {PEER}:\n\n{table(['', *settings], ratios)}\n"
    )


def auxiliary_heads(records: Records) -> str:
    """Time and parameters of five heads."""
    settings = records.distinct("setting", what="heads")
    rows = [
        [
            f"size {size}",
            *(records.heads(size=size, setting=setting) for setting in settings),
            f"{records.rounds('parameters', what='heads', size=size)[0]:,.0f}",
        ]
        for size in records.distinct("size", what="heads")
    ]
    return (
        "## Five auxiliary value heads\n\nTime of an update with them over one without. At size 5 "
        f"they may take {HEADS_TIME} of the time and {HEADS_PARAMETERS:,} parameters.\n\n"
        f"{table(['', *settings, 'parameters'], rows)}\n"
    )


def replay(records: Records) -> str:
    """Milliseconds for one write and one batch."""
    rows = [
        [f"{transitions:,} transitions"]
        + [
            spread(records.rounds(f"replay {transitions}{which}", what="replay").values())
            for which in ("", " longest")
        ]
        for transitions in (10_000, 1_000_000)
    ]
    head = ["", "mean, ms", "longest, ms"]
    return f"## Replay: write an agent step and draw a batch\n\n{table(head, rows)}\n"


def loop(records: Records) -> str:
    """Agent steps a second, and the time of one beside that of the peer's plan and update alone."""
    settings = records.distinct("setting", what="loop")
    if not settings:  # the size it has is not measured
        return ""
    (size,) = records.distinct("size", what="loop")
    plan, update = (
        records.rounds(name, what="compute", who="peer", size=size) for name in ("plan 1", "update")
    )
    speed = [records.rounds("loop", what="loop", setting=setting) for setting in settings]
    rows = [
        ["agent steps a second", *(spread(by_round.values()) for by_round in speed)],
        [
            f"an agent step's time over that of {PEER}'s plan and update alone",
            *(
                spread(1e3 / rate / (plan[n] + update[n]) for n, rate in by_round.items())
                for by_round in speed
            ),
        ],
    ]
    return f"## The whole loop: cartpole-swingup, size {size}\n\n{table(['', *settings], rows)}\n"


def memory(records: Records) -> str:
    """Mebibytes at the peak."""
    rows = [
        [f"size {size}", spread(records.rounds("memory 1", who="peer", size=size).values())]
        + [
            spread(records.rounds(f"memory {envs}", who="ours", size=size).values())
            for envs in (1, 4, 16)
        ]
        for size in records.distinct("size", what="memory")
    ]
    head = ["", f"{PEER}, 1 env", "ours, 1 env", "ours, 4 envs", "ours, 16 envs"]
    return f"## Peak memory, MiB\n\n{table(head, rows)}\n"


def draw(records: Records, path: Path) -> None:
    """Ratios as bars, targets as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = records.distinct("size", what="compute")
    settings = records.distinct("setting", what="compute", who="ours")
    figure, axes = pyplot.subplots(
        1, len(sizes) + 1, figsize=(5 * len(sizes) + 4, 4.5), layout="constrained"
    )
    for axis, size in zip(axes, sizes):
        groups = {
            setting: [records.ratio(name, size=size, setting=setting) for name in NAMES]
            for setting in settings
        }
        bars(axis, [name.replace("plan, ", "plan,\n") for name in NAMES.values()], groups)
        axis.set(title=f"size {size}", ylabel=f"times as fast as {PEER}", ylim=(0, None))
        for label, target in RATIO_TARGETS.items():
            axis.axhline(target, color="black", linestyle="--", linewidth=1, label=label)
    cost = {
        setting: [
            Spread(*(100 * (x - 1) for x in records.heads(size=size, setting=setting)))
            for size in sizes
        ]
        for setting in settings
    }
    bars(axes[-1], [f"size {size}" for size in sizes], cost)
    limit = 100 * (HEADS_TIME - 1)
    axes[-1].axhline(limit, color="black", linestyle=":", linewidth=1, label="limit of heads' time")
    axes[-1].set(title="update with five heads", ylabel="% longer than without")
    labelled = [axis.get_legend_handles_labels() for axis in axes]
    handles = {label: handle for axis in labelled for handle, label in zip(*axis)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def bars(axis: Any, labels: list[str], groups: dict[str, list[Spread]]) -> None:
    """A group of bars at each label, with the extremes over rounds."""
    width = 0.8 / len(groups)
    for number, (name, spreads) in enumerate(groups.items()):
        places = [place + (number - (len(groups) - 1) / 2) * width for place in range(len(labels))]
        heights = [x.median for x in spreads]
        errors = [[x.median - x.low for x in spreads], [x.high - x.median for x in spreads]]
        axis.bar(places, heights, width, yerr=errors, capsize=2, label=name)
    axis.set_xticks(range(len(labels)), labels, fontsize="small")


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write ``speed.md``, ``speed.png`` and ``speed.json``; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    records = Records(results["records"])
    draw(records, folder / "speed.png")
    sizes = records.distinct("size", what="compute")
    rounds, repeats = results["rounds"], results["repeats"]
    text = [
        "# Speed\n\nWritten by `make bench`; [docs/speed.md](../../docs/speed.md) says what the "
        "numbers mean.\n\n![how many times as fast](speed.png)\n",
        table(["machine", ""], results["machine"].items()) + "\n",
        f"Medians over {rounds} rounds of {repeats} calls, and in brackets the least and the "
        "greatest of the rounds.\n",
        *(planner_and_update(records, size) for size in sizes),
        auxiliary_heads(records),
        replay(records),
        loop(records),
        memory(records),
    ]
    path = folder / "speed.md"
    path.write_text("\n".join(part for part in text if part), encoding="utf-8")
    return path
