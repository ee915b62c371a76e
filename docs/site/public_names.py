"""The directive ``public-names MODULE``: the API reference of the names that a package exports.

A name that ``torchrl_tdmpc`` itself exports is described there alone.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Collection

from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

import torchrl_tdmpc

ROOT = "torchrl_tdmpc"


def homes():
    """``torchrl_tdmpc.modules.Context`` and so on: where each public object is described."""
    found = {name: f"{ROOT}.{name}" for name in torchrl_tdmpc.__all__}
    yield from found.values()
    for package in pkgutil.iter_modules(torchrl_tdmpc.__path__, f"{ROOT}."):
        module = importlib.import_module(package.name)
        if package.ispkg and package.name != f"{ROOT}.cli":  # the command line is no library
            yield from (f"{package.name}.{name}" for name in module.__all__ if name not in found)


class PublicNames(SphinxDirective):
    """Describe each public object that has its home in a module."""

    required_arguments = 1

    def run(self):
        """Hand a directive of autodoc for each name to the parser."""
        (module,) = self.arguments
        names = [name for name in homes() if name.rpartition(".")[0] == module]
        lines = ["```{eval-rst}", *(line for name in names for line in described(name)), "```"]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def described(name):
    """A directive of autodoc."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    if inspect.isclass(value):
        bases = [] if value.__bases__ == (object,) else ["   :show-inheritance:"]
        return [f".. autoclass:: {name}", "   :members:", *bases, ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {name}", ""]
    entries = ", ".join(f"``{entry}``" for entry in value) if isinstance(value, Collection) else ""
    return [f".. py:data:: {name}", "", f"   {entries or f'``{value}``'}", ""]


def refuse_missing(app, env):
    """End the build where a public name has no entry in the API reference."""
    described = {name for name, *_ in env.get_domain("py").get_objects()}
    if missing := sorted(set(homes()) - described):
        raise SphinxError(f"the API reference lacks {', '.join(missing)}")


def setup(app):
    """Register the directive and the check."""
    app.add_directive("public-names", PublicNames)
    app.connect("env-check-consistency", refuse_missing)
    return {"parallel_read_safe": True}
