"""Directives that write what the command line says of itself.

``config-reference``: tables of every setting, from the comments of the YAML.
``command-help COMMAND``: what ``--help`` prints.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

from torchrl_tdmpc.cli import help as help_texts
from torchrl_tdmpc.cli.settings import default_settings, leaves

YAML = Path(__file__).parents[2] / "torchrl_tdmpc/cli/config/tdmpc2_multigamma.yaml"
HYDRA = re.compile(r"^(defaults|hydra):.*\n(^[ ].*\n)*", re.MULTILINE)  # settings of its own
SETTING = re.compile(r"( *)([a-z]\w*):(?: +([^#\s].*?))?(?: +# (.*))?$")
FURTHER = re.compile(r" +# (.*)$")  # a comment that goes on below


def sections(text):
    """Settings as ``[name, default, meaning]`` by section; those at the top are in ``""``."""
    found, section = {"": []}, ""
    for line in HYDRA.sub("", text).splitlines():
        if match := SETTING.match(line):
            indent, key, default, meaning = match.groups()
            section = section if indent else ""
            if default:
                name = f"{section}.{key}" if section else key
                found[section].append([name, default, meaning or ""])
            else:
                section = key
                found[section] = []
        elif (match := FURTHER.match(line)) and found[section]:
            found[section][-1][2] += f"; {match[1]}"
    return found


class ConfigReference(SphinxDirective):
    """Write one table for each section."""

    def run(self):
        """Hand Markdown to the parser."""
        self.env.note_dependency(str(YAML))
        lines, tables = [], sections(YAML.read_text("utf-8"))
        named = [name for rows in tables.values() for name, *_ in rows]
        if wrong := set(named) ^ {name for name, _ in leaves(default_settings())}:
            raise SphinxError(f"the configuration reference and the YAML differ in {wrong}")
        for section, rows in tables.items():
            lines += [f"## {section or 'The run'}", ""]
            lines += ["| Setting | Default | Meaning |", "|---|---|---|"]
            cells = ([f"`{name}`", f"`{default}`", meaning] for name, default, meaning in rows)
            lines += ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in cells]
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class CommandHelp(SphinxDirective):
    """Print a text of ``--help``."""

    required_arguments = 1
    texts = {
        "tdmpc2-train": help_texts.train_help,
        "tdmpc2-evaluate": help_texts.evaluate_help,
        "tdmpc2-dataset": lambda: help_texts.DATASET_EXAMPLES,
        "tdmpc2-report": lambda: help_texts.REPORT_EXAMPLES,
    }

    def run(self):
        """The YAML's path as it is in the repository, not on this machine."""
        text = self.texts[self.arguments[0]]()
        text = text.replace(str(YAML), str(YAML.relative_to(YAML.parents[3])))
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    """Register the directives."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("config-reference", ConfigReference)
    return {"parallel_read_safe": True}
