"""Which mistakes do the tests notice? ``make mutants`` puts some in, one at a time.

A seeded random sample of the library's lines gets one small mistake each, made by cosmic-ray:
another comparison, number or operator, a negated condition, a loop that is not entered. The fast
tests of that file run with each of them. Everything happens in copies of the working tree, so an
interrupt leaves nothing behind. The settings are in ``pyproject.toml``, under ``tool.mutants``;
docs/contributing.md says how to read what is printed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import attrs
import toml
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.testing import run_tests
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkResult

ROOT = Path(__file__).parents[1]
PACKAGE = "torchrl_tdmpc"
OUTCOMES = NOTICED, NOT_NOTICED, OUT_OF_TIME = "noticed", "NOT NOTICED", "OUT OF TIME"


def main() -> None:
    """Put in as many mistakes as the settings say, and print which were noticed."""
    settings = toml.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("number", "seed", "minutes", "seconds_each", "jobs"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=settings[name], help="(%(default)s)")
    parser.add_argument("--only", default="", help="part of the paths of the files to take")
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.minutes

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Path(folder, str(number)) for number in range(chosen.jobs)]
        for copy in copies:
            copy_tree(copy)
        os.chdir(copies[0])
        sys.path[:0] = [str(copies[0]), f"{copies[0]}/test"]
        paths = [path for path in Path(PACKAGE).glob("**/*.py") if chosen.only in str(path)]
        tests = tests_of_files(settings["also"])
        mutants = [mutant for path in sorted(paths) for mutant in candidates(path)]
        sample = draw(mutants, chosen.number, random.Random(chosen.seed))
        needed = {test for mutant in sample for test in tests[mutant.module_path]}
        refuse_failing(copies[0], needed, chosen.jobs, end)
        results: dict[Path, Counter[str]] = defaultdict(Counter)
        tried = attempts(sample, copies, tests, chosen.seconds_each, end)
        try:
            for number, (mutant, result) in enumerate(zip(sample, tried), 1):
                if result is None:
                    print(
                        f"{chosen.minutes} minutes are over, {len(sample) - number + 1} not tried"
                    )
                    break
                outcome = outcome_of(result)
                results[mutant.module_path][outcome] += 1
                print(f"{number:4} {outcome}: {describe(mutant)}", flush=True)
                if outcome != NOTICED:
                    print(changed_lines(result.diff), flush=True)
        finally:
            report(results)


def attempts(
    sample: list[MutationSpec],
    copies: list[Path],
    tests: dict[Path, list[str]],
    seconds_each: int,
    end: float,
) -> Iterator[WorkResult | None]:
    """The tests of a file with each mistake in it, as many at once as there are copies.

    Yields:
        What came of each, in the sample's order; None if the time was over.
    """
    free = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def attempt(mutant: MutationSpec) -> WorkResult | None:
        if time.monotonic() > end:
            return None
        copy = free.get()
        place = attrs.evolve(mutant, module_path=copy / mutant.module_path)
        command = pytest(copy, tests[mutant.module_path], mutant.module_path)
        result = mutate_and_test([place], command, seconds_each)
        free.put(copy)
        return result

    jobs = ThreadPoolExecutor(len(copies))
    try:
        yield from jobs.map(attempt, sample)
    finally:
        jobs.shutdown(cancel_futures=True)


def outcome_of(result: WorkResult) -> str:
    """What became of a mistake. Tests that take too long may loop, or may merely be slow."""
    if result.test_outcome == TestOutcome.SURVIVED:
        return NOT_NOTICED
    return OUT_OF_TIME if result.output == "timeout" else NOTICED


def copy_tree(folder: Path) -> None:
    """Copy what git knows of, and what it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def pytest(copy: Path, tests: Iterable[str], path: Path | None = None, workers: int = 0) -> str:
    """The command that runs files of tests in a copy, and first a file's own examples."""
    files = [f"test/{test}.py" for test in tests]
    examples = [] if path is None else ["--doctest-modules", str(path)]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-n", str(workers)]
    where = ["env", "-C", str(copy), f"PYTHONPATH={copy}"]
    return " ".join([*where, sys.executable, "-m", "pytest", *options, *examples, *files])


def refuse_failing(copy: Path, tests: set[str], jobs: int, end: float) -> None:
    """Tests that fail without a mistake would notice every one."""
    print(f"{len(tests)} files of tests, first without a mistake", flush=True)
    command = pytest(copy, sorted(tests), workers=jobs)
    outcome, output = run_tests(command, end - time.monotonic())
    if outcome != TestOutcome.SURVIVED:
        raise SystemExit(f"error: these tests fail without a mistake.\n{output}")


def tests_of_files(also: dict[str, list[str]]) -> dict[Path, list[str]]:
    """The fast files of tests that import something from a file, those of few files first.

    Args:
        also: by part of a path, further files of tests, which come before these.
    """
    slow = importlib.import_module("conftest").SLOW
    imported, spread = defaultdict(set), Counter()
    for test in Path("test").glob("test_*.py"):
        for module in {*modules_used(test)} if test.stem not in slow else ():
            imported[module].add(test.stem)
            spread[test.stem] += 1
    found = {}
    for path in Path(PACKAGE).glob("**/*.py"):
        more = [test for part, tests in also.items() if part in str(path) for test in tests]
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        near = sorted(imported[module], key=lambda test: (spread[test], test))
        found[path] = list(dict.fromkeys([*more, *near]))
    return found


def modules_used(test: Path) -> Iterator[str]:
    """The modules that define what a file of tests imports from the library."""
    for node in ast.walk(ast.parse(test.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGE):
            module = importlib.import_module(node.module)
            for alias in node.names:
                value = getattr(module, alias.name, None)
                if value is None or inspect.ismodule(value):
                    yield f"{node.module}.{alias.name}"
                else:
                    yield getattr(value, "__module__", node.module)


def candidates(path: Path) -> Iterator[MutationSpec]:
    """Every mistake that cosmic-ray can make in a file, messages and annotations left out."""
    skipped = skipped_spans(path.read_text())
    tree = get_ast_from_path(path)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():
            continue
        places = (
            place for node in ast_nodes(tree) for place in operator().mutation_positions(node)
        )
        for occurrence, (begin, end) in enumerate(places):
            if not any(first <= begin < last for first, last in skipped):
                yield MutationSpec(path, name, occurrence, begin, end)


def skipped_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a mistake would change a message or an annotation alone: first and last position."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Raise | ast.JoinedStr):
            parts = [node]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            parts = [node]
        spans += [
            ((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset))
            for part in parts
            if part is not None
        ]
    return spans


def draw(mutants: list[MutationSpec], number: int, rng: random.Random) -> list[MutationSpec]:
    """A sample of lines, with one mistake in each: a line counts once, however many fit in it."""
    by_line = defaultdict(list)
    for mutant in mutants:
        by_line[str(mutant.module_path), mutant.start_pos[0]].append(mutant)
    lines = rng.sample(sorted(by_line), min(number, len(by_line)))
    # The operator first: a comparison has seven others
    drawn = []
    for line in lines:
        kinds = defaultdict(list)
        for mutant in by_line[line]:
            kinds[mutant.start_pos, mutant.operator_name.rpartition("_")[0]].append(mutant)
        drawn.append(rng.choice(kinds[rng.choice(sorted(kinds))]))
    return drawn


def describe(mutant: MutationSpec) -> str:
    """Where a mistake is, and of which kind."""
    kind = mutant.operator_name.rpartition("/")[2]
    return f"{mutant.module_path}:{mutant.start_pos[0]} {kind}"


def changed_lines(diff: str) -> str:
    """The lines of a diff that differ."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in _HEADERS]
    return "\n".join(f"       {line}" for line in lines)


_HEADERS = ("---", "+++")


def report(results: dict[Path, Counter[str]]) -> None:
    """How many mistakes were noticed, by file."""
    print(f"\n{'file':56}", *(f"{outcome:>11}" for outcome in OUTCOMES))
    for path, counts in sorted(results.items()):
        print(f"{path!s:56}", *(f"{counts[outcome]:11}" for outcome in OUTCOMES))
    total = sum(results.values(), Counter())
    share = 100 * total[NOTICED] / max(total.total(), 1)
    counts = (f"{total[outcome]:11}" for outcome in OUTCOMES)
    print(f"{'all':56}", *counts, f"  ({share:.0f} % noticed)")


if __name__ == "__main__":
    main()
