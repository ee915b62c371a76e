"""Apply, test and write the contributions: ``make upstream`` and ``make upstream-check``.

``check`` needs TorchRL's files alone: it applies every contribution to them and writes the patches.
``run`` needs the nightly's environment and a checkout of TorchRL, whose tests it runs on copies of
the installed package, with and without each patch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from upstream.contributions import Contribution, apply, contributions, with_needs
from upstream.edits import AnchorError

# TorchRL's own tests of what the contributions touch; a checkout may be older than some of them
THEIR_TESTS = (
    "test/envs/test_model_based.py",
    "test/modules/test_planners.py",
    "test/modules/test_tdmpc2.py",
    "test/objectives/test_loss_module.py",
    "test/objectives/test_tdmpc2_loss.py",
    "test/test_tdmpc2_trainer.py",
)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m upstream", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="apply every change and write the patches"
    )
    check.add_argument("nightly", type=Path, help="a folder with torchrl/ in it")
    run = commands.add_parser("run", help="also run TorchRL's tests and the new ones")
    run.add_argument(
        "torchrl", type=Path, help="a checkout of TorchRL, for its tests and docs"
    )
    run.add_argument("--only", metavar="NN", help="one contribution, by its number")
    for command in (check, run):
        command.add_argument("--build", type=Path, default=Path("build/upstream"))
    arguments = parser.parse_args()
    try:
        if arguments.command == "check":
            write_patches(arguments.build, arguments.nightly)
        else:
            run_all(arguments.build, arguments.torchrl, arguments.only)
    except AnchorError as error:
        raise SystemExit(f"error: {error}") from None


def write_patches(build: Path, *roots: Path) -> None:
    """Write ``NN-title.patch`` for each contribution, print its size, and see that all fit."""
    every = contributions()
    for contribution in every:
        stack = with_needs(contribution, every)
        before = build / "before" / contribution.name
        shutil.rmtree(before, ignore_errors=True)
        patch = apply(stack, *roots, before=before).patch()
        (build / f"{contribution.name}.patch").parent.mkdir(parents=True, exist_ok=True)
        (build / f"{contribution.name}.patch").write_text(patch)
        counts = Counter(line[0] for line in patch.splitlines() if line[:1] in "+-")
        needs = f", on {', '.join(contribution.needs)}" if contribution.needs else ""
        print(f"{contribution.name}: +{counts['+']} -{counts['-']} lines{needs}")
    apply(every, *roots)  # also all of them on top of each other


def run_all(build: Path, checkout: Path, only: str | None) -> None:
    """Build the overlays, run the tests on them, and print what came out as a table."""
    if not (checkout / "test" / "conftest.py").is_file():
        raise SystemExit(
            f"error: TORCHRL={checkout} is no checkout of TorchRL (no test/conftest.py)."
        )
    installed = Path(importlib.util.find_spec("torchrl").origin).parent.parent
    write_patches(build, installed, checkout)
    overlays = build / "overlays"
    shutil.rmtree(overlays, ignore_errors=True)
    theirs = [path for path in THEIR_TESTS if (checkout / path).is_file()]
    for path in set(THEIR_TESTS) - set(theirs):
        print(f"not in this checkout: {path}")

    every = contributions()
    chosen = [one for one in every if only is None or one.name.startswith(only)]
    if not chosen:
        numbers = ", ".join(one.name[:2] for one in every)
        raise SystemExit(
            f"error: --only={only} is no contribution; choose from {numbers}."
        )
    base = overlay(overlays / "base", installed, checkout, [])
    base_theirs = run_tests(base, theirs)
    rows, wrong = [], []
    for contribution in chosen:
        stack = with_needs(contribution, every)
        # Without the patch: what it stands on is there, and so are its tests
        without = overlay(
            overlays / f"without-{contribution.name}", installed, checkout, stack[:-1]
        )
        for path in contribution.files:
            (without / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(contribution.folder / path, without / path)
        with_patch = overlay(overlays / contribution.name, installed, checkout, stack)
        new = [
            path for path in contribution.tests if path not in contribution.hold_already
        ]
        new_without = run_tests(without, new)
        new_with = run_tests(with_patch, contribution.tests)
        their_with = run_tests(with_patch, theirs)
        rows.append((contribution.name, new_without, new_with, base_theirs, their_with))
        if new_without["passed"]:
            wrong.append(
                f"{contribution.name}: {new_without['passed']} new tests pass without it"
            )
        if new_with["failed"] or not new_with["passed"]:
            wrong.append(
                f"{contribution.name}: {new_with['failed']} new tests fail with it"
            )
        if their_with["failed"] > base_theirs["failed"]:
            wrong.append(
                f"{contribution.name}: more of TorchRL's tests fail with it than without"
            )
    if only is None:
        together = overlay(overlays / "together", installed, checkout, every)
        new = run_tests(together, [path for one in every for path in one.tests])
        their = run_tests(together, theirs)
        rows.append(("all together", None, new, base_theirs, their))
        if new["failed"] or their["failed"] > base_theirs["failed"]:
            wrong.append("all together: more tests fail than without")
    print_table(rows)
    if wrong:
        raise SystemExit("error: " + "; ".join(wrong) + ".")


def overlay(
    folder: Path, installed: Path, checkout: Path, stack: list[Contribution]
) -> Path:
    """Copy the installed ``torchrl`` and the checkout's tests, and apply contributions to them."""
    shutil.copytree(installed / "torchrl", folder / "torchrl")
    shutil.copytree(checkout / "test", folder / "test")
    # None of the settings of the folders above
    (folder / "pytest.ini").write_text("[pytest]\n")
    apply(stack, folder, checkout).write(folder)
    return folder


def run_tests(folder: Path, tests: list[str]) -> Counter:
    """Run files of tests on an overlay.

    Returns:
        Counter: how many tests passed, failed and were skipped; errors count as failed.
    """
    report = (folder / "report.xml").resolve()
    report.unlink(missing_ok=True)
    environment = dict(os.environ, PYTHONPATH=str(folder.resolve()))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
    ]
    result = subprocess.run(
        [*command, f"--junitxml={report}", *tests],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with (folder / "tests.log").open("a") as log:
        log.write(result.stdout)
    if not report.is_file():
        raise SystemExit(
            f"error: pytest wrote no report; {folder / 'tests.log'} says why."
        )
    counts = Counter({"passed": 0, "failed": 0, "skipped": 0})
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
        elif "skipped" in kinds:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


def print_table(rows: list[tuple]) -> None:
    """Print, for each contribution, the passed and failed tests without and with it."""

    def cell(counts: Counter | None) -> str:
        return "-" if counts is None else f"{counts['passed']} / {counts['failed']}"

    print("\npassed / failed            | new tests |           | TorchRL's own |")
    print("contribution               | without   | with      | without       | with")
    for name, *counts in rows:
        new_without, new_with, their_without, their_with = map(cell, counts)
        print(
            f"{name:26} | {new_without:9} | {new_with:9} | {their_without:13} | {their_with}"
        )


if __name__ == "__main__":
    main()
