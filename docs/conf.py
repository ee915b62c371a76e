"""Settings of Sphinx for `make docs`. The sources are the Markdown files of the whole repository.

They are read from its root, so that links between pages hold on GitHub and on the site alike.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/site")]

import torchrl_tdmpc

project = "torchrl_tdmpc"
version = release = torchrl_tdmpc.__version__
author = "torchrl_tdmpc contributors"

root_doc = "docs/home"
include_patterns = [
    *("docs/**", "benchmarks/results/speed.md", "test/reference/README.md"),
    *("results/README.md", "upstream/README.md"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"),
]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "config_reference",
    "public_names",
]
# Links into other projects' documentation need a network, so they are made on demand only
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "torchrl": ("https://docs.pytorch.org/rl/stable", None),
        "tensordict": ("https://docs.pytorch.org/tensordict/stable", None),
    }

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_custom_sections = [("Keyword Args", "params_style")]
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"torchrl_tdmpc {release}"
html_extra_path = ["site/index.html"]
html_copy_source = False
