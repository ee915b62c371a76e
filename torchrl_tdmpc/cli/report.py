"""Turn runs into a table and plots: ``tdmpc2-report outputs/sweeps --references official.csv``."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_tdmpc.cli.help import REPORT_EXAMPLES
from torchrl_tdmpc.recording.report import (
    OFFICIAL,
    arms_of,
    find_runs,
    plot_arms,
    read_references,
    table,
)


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows as a table in Markdown.

    Examples:
        >>> print(markdown([{"task": "walker-walk", "return": "962.0"}]))
        | task | return |
        |---|---|
        | walker-walk | 962.0 |
    """
    lines = [list(rows[0]), *(row.values() for row in rows)]
    shown = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([shown[0], "|---" * len(rows[0]) + "|", *shown[1:]])


def main(arguments: list[str] | None = None) -> None:
    """The console script ``tdmpc2-report``."""
    parser = argparse.ArgumentParser(
        prog="tdmpc2-report",
        description="Compare finished or running training runs: write a table and two plots.",
        epilog=REPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", help="runs, or folders that hold runs")
    parser.add_argument(
        "--references",
        metavar="CSV",
        default=OFFICIAL,
        help="file with results to draw beside them; columns: task, step (environment steps), "
        "mean, std, name (default: the official implementation after 100,000 environment steps)",
    )
    parser.add_argument(
        "--output",
        default=".",
        metavar="FOLDER",
        help="where report.md, returns_over_steps.png and returns_over_minutes.png are written "
        "(default: the current folder)",
    )
    given = parser.parse_args(arguments)
    try:
        arms = arms_of(find_runs(given.folders))
        references = read_references(given.references)
        text = markdown(table(arms, references))
        output = Path(given.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.md").write_text(text + "\n", encoding="utf-8")
        plots = [
            plot_arms(arms, references, output / f"returns_over_{over}.png", over=over)
            for over in ("steps", "minutes")
        ]
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(text)
    print("written:", ", ".join(map(str, [output / "report.md", *plots])))


if __name__ == "__main__":
    main()
