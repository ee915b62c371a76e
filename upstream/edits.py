"""Changes to files of another project, placed by short anchors.

A contribution's ``change.py`` holds our own lines and the places where they go, so this repository
has no line of TorchRL's. A place is named by an *anchor*: a fragment that exactly one line of the
file, or of the class or function that is named, holds. A place that is not found is refused in one
sentence, so a change that no longer fits a new TorchRL is noticed.
"""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path


class AnchorError(ValueError):
    """A place that a change names is not in the file, or is there more than once."""


class Source:
    """The lines of a file, or of one function or class in it, that a change edits.

    Args:
        name: the file's path inside TorchRL, for messages.
        text: what the file holds.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines = text.splitlines(keepends=True)
        self._first, self._last = 0, len(self.lines)
        self._outer: Source | None = None

    @property
    def text(self) -> str:
        """The whole file as it is now."""
        return "".join(self.lines)

    def within(self, anchor: str) -> Source:
        """The block that the line with ``anchor`` opens: it and all lines that are indented deeper.

        Args:
            anchor: a fragment of a ``class`` or ``def`` line.

        Returns:
            Source: edits of it are edits of the file. Take it anew after an edit above it.
        """
        first = self._find(anchor)
        margin = _indent(self.lines[first])
        last = first + 1
        # A signature may close at the margin of its `def`, and the body follows
        while last < self._last and (
            not self.lines[last].strip()
            or _indent(self.lines[last]) > margin
            or self.lines[last].lstrip().startswith(")")
        ):
            last += 1
        while not self.lines[last - 1].strip():
            last -= 1
        block = Source.__new__(Source)
        block.name, block.lines, block._outer = self.name, self.lines, self
        block._first, block._last = first, last
        return block

    def after(self, anchor: str, ours: str, *, indent: int | None = None) -> None:
        """Put our lines after the line with ``anchor``, at ``indent`` spaces (default: as it)."""
        place = self._find(anchor)
        margin = _indent(self.lines[place]) if indent is None else indent
        self._put(place + 1, place + 1, ours, margin)

    def before(self, anchor: str, ours: str, *, indent: int | None = None) -> None:
        """Put our lines before the line with ``anchor``, at ``indent`` spaces (default: as it)."""
        place = self._find(anchor)
        margin = _indent(self.lines[place]) if indent is None else indent
        self._put(place, place, ours, margin)

    def replace(self, anchor: str, ours: str, *, through: str | None = None) -> None:
        """Put our lines in the place of the line with ``anchor``, or of it and all up to another.

        Args:
            anchor: a fragment of the first line that goes; ours take its indentation.
            ours: what comes in its place; an empty string takes the lines away.
            through: a fragment of the last line that goes; the first line with it at or after
                ``anchor`` counts.
        """
        place = self._find(anchor)
        last = place
        if through is not None:
            following = (
                at for at in range(place, self._last) if through in self.lines[at]
            )
            last = next(following, -1)
            if last < 0:
                raise AnchorError(
                    f"{self.name} has no line with {through!r} after {anchor!r}."
                )
        self._put(place, last + 1, ours, _indent(self.lines[place]))

    def append(self, ours: str, *, indent: int = 0) -> None:
        """Put our lines at the end of the file, or of the block, at ``indent`` spaces."""
        self._put(self._last, self._last, ours, indent)

    def _find(self, anchor: str) -> int:
        places = [
            at for at in range(self._first, self._last) if anchor in self.lines[at]
        ]
        if len(places) != 1:
            raise AnchorError(
                f"{self.name} has {len(places)} lines with the anchor {anchor!r}; one is needed."
            )
        return places[0]

    def _put(self, first: int, last: int, ours: str, indent: int) -> None:
        text = textwrap.indent(
            textwrap.dedent(ours.rstrip(" ").removeprefix("\n")), " " * indent
        )
        fresh = [line + "\n" for line in text.splitlines()]
        self.lines[first:last] = fresh
        block: Source | None = self
        while block is not None:
            block._last += len(fresh) - (last - first)
            block = block._outer


class Tree:
    """TorchRL's files as a change sees them: read where needed, and written nowhere.

    Args:
        roots: folders that hold the files, looked through in their order: an overlay with
            ``torchrl/``, and perhaps a checkout with ``docs/`` and ``test/``.
    """

    def __init__(self, *roots: Path) -> None:
        self.roots = roots
        self.before: dict[str, str] = {}
        self.sources: dict[str, Source] = {}

    def has(self, path: str) -> bool:
        """Whether a file is there: without a checkout there are no docs to edit."""
        return path in self.sources or any(
            (root / path).is_file() for root in self.roots
        )

    def file(self, path: str) -> Source:
        """The file at ``path``, to be edited.

        Raises:
            AnchorError: it is in none of the folders.
        """
        if path not in self.sources:
            found = [root / path for root in self.roots if (root / path).is_file()]
            if not found:
                raise AnchorError(
                    f"{path} is in none of {', '.join(map(str, self.roots))}."
                )
            self.before[path] = found[0].read_text()
            self.sources[path] = Source(path, self.before[path])
        return self.sources[path]

    def new(self, path: str, text: str) -> None:
        """Add a file.

        Raises:
            AnchorError: one of that name is there.
        """
        if self.has(path):
            raise AnchorError(f"{path} is there already.")
        self.before[path] = ""
        self.sources[path] = Source(path, text)

    def write(self, folder: Path) -> None:
        """Write the changed files into a folder of TorchRL's layout."""
        for path, source in self.sources.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(source.text)

    def patch(self) -> str:
        """The change as ``git apply`` takes it."""
        parts = []
        for path, source in sorted(self.sources.items()):
            old, new = self.before[path], source.text
            if old == new:
                continue
            parts.append(f"diff --git a/{path} b/{path}\n")
            if not old:
                parts.append("new file mode 100644\n")
            parts += difflib.unified_diff(
                old.splitlines(keepends=True),
                new.splitlines(keepends=True),
                f"a/{path}" if old else "/dev/null",
                f"b/{path}",
            )
        return "".join(parts)


def _indent(line: str) -> int:
    """How many spaces a line begins with."""
    return len(line) - len(line.lstrip(" "))
