"""The contributions: what a folder holds, and in which order they stand on each other."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from upstream.edits import Tree

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contribution:
    """One folder: ``README.md`` (the pull request's text), ``change.py`` and new tests.

    ``change.py`` has ``change(tree)``, and ``NEEDS``, the names of the contributions
    that it stands on. It may have ``HOLD_ALREADY``, files of tests that pass without the
    change too. The files under ``test/`` land upstream under the same names.
    """

    folder: Path
    needs: tuple[str, ...]
    change: Callable[[Tree], None]
    hold_already: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name: a number and a title."""
        return self.folder.name

    @property
    def tests(self) -> list[str]:
        """Its new files of tests, as paths inside TorchRL, sorted."""
        return sorted(
            str(file.relative_to(self.folder))
            for file in self.folder.glob("test/**/test_*.py")
        )

    @property
    def files(self) -> list[str]:
        """All its files that land upstream as they are: tests and benchmarks."""
        return sorted(
            str(file.relative_to(self.folder))
            for part in ("test", "benchmarks")
            for file in self.folder.glob(f"{part}/**/*")
            if file.is_file() and "__pycache__" not in file.parts
        )


def contributions() -> list[Contribution]:
    """Every contribution, in the order of their numbers."""
    found = []
    for file in sorted(HERE.glob("[0-9][0-9]-*/change.py")):
        names = runpy.run_path(str(file))
        hold_already = names.get("HOLD_ALREADY", ())
        found.append(
            Contribution(file.parent, names["NEEDS"], names["change"], hold_already)
        )
    return found


def with_needs(
    contribution: Contribution, every: list[Contribution]
) -> list[Contribution]:
    """What a contribution stands on, and then it, each once.

    Raises:
        ValueError: it needs one that is not there, or that comes after it.
    """
    before = every[: every.index(contribution)]
    wanted: list[Contribution] = []
    for name in contribution.needs:
        found = [other for other in before if other.name == name]
        if not found:
            raise ValueError(
                f"{contribution.name} needs {name}, which is not before it."
            )
        wanted += [one for one in with_needs(found[0], before) if one not in wanted]
    return [*wanted, contribution]


def apply(stack: list[Contribution], *roots: Path, before: Path | None = None) -> Tree:
    """Apply contributions on top of each other.

    Args:
        stack: what to apply, in order.
        roots: the folders with TorchRL's files.
        before: a folder for the files as they are before the last one, which the patch is against.

    Returns:
        Tree: every file that was touched; its patch is that of the last contribution alone where
        ``before`` is given, and of all otherwise.

    Raises:
        AnchorError: a place that a change names is not there.
    """
    tree = Tree(*roots)
    for at, contribution in enumerate(stack):
        if at == len(stack) - 1 and before is not None and stack[:-1]:
            tree.write(before)
            tree = Tree(before, *roots)
        contribution.change(tree)
        for path in contribution.files:
            tree.new(path, (contribution.folder / path).read_text())
    return tree
