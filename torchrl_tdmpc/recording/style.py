"""How every plot looks: panels, grids, axes and reference lines."""

from __future__ import annotations

from typing import Any

__all__ = ["add_legend", "draw_level", "dress", "in_words", "make_panels"]

PANEL = (4.5, 3.2)  # inches, of one among several
ALONE = (8.0, 4.5)


# What a legend calls settings; {} is the value
WORDS = {
    ("collector.mode", "sync"): "acting and learning by turns",
    ("collector.mode", "async"): "actors beside the learner",
    ("collector.mode", "ray"): "actors in a Ray cluster",
    ("compile", "off"): "eager",
    ("compile", "default"): "compiled",
    ("compile", "max"): "compiled with a longer search",
    ("env.pixels", "False"): "from states",
    ("env.pixels", "True"): "from pixels",
    ("multi_gamma.bootstrap", "primary"): "heads bootstrap from the Q-functions",
    ("multi_gamma.bootstrap", "self"): "heads bootstrap from themselves",
    ("multi_gamma.enabled", "False"): "without auxiliary value heads",
    ("multi_gamma.enabled", "True"): "with auxiliary value heads",
    "env.num_envs": "{} environments",
    "model.size": "{}M parameters",
    "precision": "{}",
    "train.utd": "update-to-data ratio {}",
}


def in_words(key: str, value: str) -> str:
    """What a legend says of a setting.

    Args:
        key: of the configuration.
        value: as text.

    Examples:
        >>> in_words("model.size", "5"), in_words("multi_gamma.enabled", "True")
        ('5M parameters', 'with auxiliary value heads')
        >>> in_words("train.batch_size", "64")
        'train: batch size 64'
    """
    general = f"{key.replace('.', ': ').replace('_', ' ')} {{}}"
    return WORDS.get((key, value), WORDS.get(key, general)).format(value)


def make_panels(count: int, *, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure of matplotlib and its panels, which need no display and leave no state.

    Args:
        count: how many panels.
        columns: how many beside each other, at most.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    size = ALONE if count == 1 else (PANEL[0] * columns, PANEL[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, list(panels[:count])


def dress(panel: Any, *, title: str, xlabel: str, ylabel: str, to_1000: bool) -> None:
    """Give a panel its words, grid and numbers, once all is drawn.

    Args:
        panel: matplotlib's axes.
        title: above it.
        xlabel: what is drawn over, with its unit.
        ylabel: what is drawn, with its unit.
        to_1000: whether the y-axis goes from 0 to 1,000, the range of DMControl's returns.
    """
    panel.set(title=title, xlabel=xlabel, ylabel=ylabel)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.locator_params(axis="x", nbins=5)
    panel.grid(alpha=0.3)
    if to_1000:
        panel.set_ylim(0, 1000)


def add_legend(figure: Any, panels: list[Any]) -> None:
    """One legend for all panels, below them, where it hides no point."""
    entries = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    if entries:
        place = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": "small"}
        figure.legend(entries.values(), entries.keys(), **place)


def draw_level(panel: Any, value: float, label: str, *, dotted: bool = False) -> None:
    """A horizontal line to compare with, dashed or dotted."""
    style = ":" if dotted else "--"
    panel.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=label)
