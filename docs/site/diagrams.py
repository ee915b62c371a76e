"""Draw the two diagrams of docs/algorithm.md: the data flow of an update, and that of a plan.

``python docs/site/diagrams.py`` writes ``docs/images/update.svg`` and ``docs/images/plan.svg``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

matplotlib.rcParams["svg.hashsalt"] = "fixed"  # the same file whenever it is drawn

IMAGES = Path(__file__).parents[1] / "images"
COLORS = {"data": "#e8e8e8", "latent": "#cfe3f7", "target": "#ffffff", "loss": "#fbdcc0"}


class Diagram:
    """Boxes and arrows on a sheet.

    Args:
        width: of the sheet, in units of about a box.
        height: of the sheet.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(
        self, x: float, y: float, text: str, kind: str, width: float = 1.1, height: float = 0.5
    ) -> None:
        """A box around ``x, y``; targets, which have no gradient, have a dashed edge."""
        shape = FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLORS[kind],
            edgecolor="black",
            linewidth=0.8,
            linestyle="--" if kind == "target" else "-",
        )
        self.axes.add_patch(shape)
        self.axes.text(x, y, text, ha="center", va="center", fontsize=9)

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        text: str = "",
        *,
        gradient: bool = True,
        curve: float = 0.0,
        both: bool = False,
    ) -> None:
        """An arrow, dashed where no gradient flows back, with a text beside its middle."""
        shape = FancyArrowPatch(
            start,
            end,
            arrowstyle="<|-|>" if both else "-|>",
            mutation_scale=9,
            linewidth=0.9,
            linestyle="-" if gradient else "--",
            color="black",
            connectionstyle=f"arc3,rad={curve}",
        )
        self.axes.add_patch(shape)
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if start[0] == end[0]:  # to the right of a vertical one, above any other
            self.note(middle[0] + 0.07, middle[1], text, align="left")
        else:
            self.note(middle[0], middle[1] + 0.13, text)

    def note(self, x: float, y: float, text: str, align: str = "center") -> None:
        """Text without a box."""
        self.axes.text(x, y, text, ha=align, va="center", fontsize=8)

    def save(self, name: str, folder: Path = IMAGES) -> Path:
        """Write ``name.svg``."""
        path = folder / f"{name}.svg"
        self.figure.savefig(path, metadata={"Date": None})
        return path


def update() -> Diagram:
    """One update with a horizon of 3: unroll, targets, losses, and then the policy prior."""
    sheet = Diagram(9.6, 6.2)
    columns = [1.6, 3.4, 5.2, 7.0]
    rows = {"s": 5.7, "h": 4.7, "z": 3.6, "heads": 2.5, "y": 1.4, "policy": 0.45}
    for t, x in enumerate(columns):
        sheet.box(x, rows["s"], f"$s_{t}$", "data")
        sheet.box(x, rows["z"], f"$z_{t}$", "latent")
        if t == 0:
            sheet.arrow((x, rows["s"] - 0.25), (x, rows["z"] + 0.25), "encoder $h$")
        else:
            sheet.box(x, rows["h"], f"$h(s_{t})$", "target")
            sheet.arrow((x, rows["s"] - 0.25), (x, rows["h"] + 0.25), "$h$", gradient=False)
            ends = (x, rows["h"] - 0.25), (x, rows["z"] + 0.25)
            sheet.arrow(*ends, "consistency loss", both=True)
            label = f"$d(\\cdot, a_{t - 1})$"
            sheet.arrow((columns[t - 1] + 0.55, rows["z"]), (x - 0.55, rows["z"]), label)
        if t < 3:
            sheet.box(x, rows["heads"], f"$R,\\ Q_1 .. Q_5\\ (z_{t}, a_{t})$", "latent", 1.65)
            sheet.arrow((x, rows["z"] - 0.25), (x, rows["heads"] + 0.25))
            sheet.box(x, rows["y"], f"$r_{t},\\ \\ y_{t}$", "target", 1.65)
            ends = (x, rows["heads"] - 0.25), (x, rows["y"] + 0.25)
            sheet.arrow(*ends, "reward and value loss", both=True)
    sheet.box(8.6, rows["h"], "$a' \\sim \\pi$", "target")
    sheet.arrow((7.55, rows["h"]), (8.05, rows["h"]), gradient=False)
    sheet.box(8.6, rows["z"], "$V = \\min(Q'_i, Q'_j)$", "target", 1.6)
    sheet.arrow((8.6, rows["h"] - 0.25), (8.6, rows["z"] + 0.25), gradient=False)
    sheet.note(8.6, 5.15, "for each $h(s_{t+1})$:")
    formula = "$y_t = r_t + \\gamma\\,(1 - \\mathrm{terminated}_t)\\,V(s_{t+1})$"
    sheet.box(8.03, rows["y"], formula, "target", 3.0)
    sheet.arrow((8.6, rows["z"] - 0.25), (8.6, rows["y"] + 0.25), gradient=False)
    sheet.arrow((6.53, rows["y"]), (6.03, rows["y"]), gradient=False)
    sheet.box(1.6, rows["policy"], "$z_0 .. z_3$, no gradient", "target", 1.9)
    sheet.box(4.3, rows["policy"], "$a \\sim \\pi(z_t)$", "latent", 1.4)
    text = "policy loss: mean of $-(\\alpha H + Q(z_t, a) / S)$"
    sheet.box(7.55, rows["policy"], text, "loss", 3.4)
    sheet.arrow((2.55, rows["policy"]), (3.6, rows["policy"]), gradient=False)
    sheet.arrow((5.0, rows["policy"]), (5.85, rows["policy"]))
    sheet.note(7.75, 5.7, "solid: gradients flow back\ndashed: no gradient", align="left")
    sheet.note(0.1, 0.93, "after the step of the model's optimiser:", align="left")
    return sheet


def plan() -> Diagram:
    """One plan: candidates, their values, the elites, and the distribution that they refit."""
    sheet = Diagram(9.6, 4.6)
    sheet.box(0.8, 4.1, "observation", "data", 1.3)
    sheet.box(2.9, 4.1, "$z_0$", "latent", 0.8)
    sheet.arrow((1.45, 4.1), (2.5, 4.1), "encoder $h$")
    sheet.box(5.5, 4.1, "$P$ sequences of the policy prior", "latent", 2.9)
    sheet.arrow((3.3, 4.1), (4.05, 4.1), "$\\pi, d$")
    sheet.box(1.5, 2.7, "mean of the last plan,\none agent step ahead", "data", 2.3, 0.7)
    sheet.box(1.5, 1.3, "$\\mu_0 .. \\mu_{H-1}$\n$\\sigma_0 .. \\sigma_{H-1}$", "latent", 1.6, 0.8)
    sheet.arrow((1.5, 2.35), (1.5, 1.7), "start")
    sheet.box(
        4.2,
        2.7,
        "$N - P$ sequences,\n$a_t \\sim \\mathcal{N}(\\mu_t, \\sigma_t)$",
        "latent",
        2.0,
        0.7,
    )
    sheet.arrow((2.3, 1.45), (3.2, 2.4))
    sheet.note(2.65, 2.15, "sample", align="right")
    sheet.box(7.4, 2.7, "$N$ candidates imagined:\n$z_{t+1} = d(z_t, a_t)$", "latent", 2.5, 0.7)
    sheet.arrow((5.2, 2.7), (6.15, 2.7))
    sheet.arrow((6.6, 3.85), (7.2, 3.05))
    value = "values: $\\sum_t \\gamma^t R(z_t, a_t)$\n$+\\ \\gamma^H Q(z_H, \\pi(z_H))$"
    sheet.box(7.4, 1.3, value, "latent", 2.5, 0.8)
    sheet.arrow((7.4, 2.35), (7.4, 1.7))
    sheet.box(4.2, 1.3, "$K$ elites with weights\nsoftmax(temperature · value)", "latent", 2.4, 0.8)
    sheet.arrow((6.15, 1.3), (5.4, 1.3), "best")
    sheet.arrow((3.0, 1.3), (2.3, 1.3), "refit")
    sheet.note(2.65, 0.95, "6 times")
    sheet.box(4.2, 0.3, "one elite's first action (+ noise)", "data", 2.8)
    sheet.arrow((4.2, 0.9), (4.2, 0.55), "draw by weight, at the end")
    sheet.box(1.3, 0.3, "mean, for the next plan", "data", 2.0)
    sheet.arrow((1.3, 0.9), (1.3, 0.55), "at the end")
    return sheet


def main() -> None:
    """Draw both."""
    for name, sheet in (("update", update()), ("plan", plan())):
        print(sheet.save(name))


if __name__ == "__main__":
    main()
