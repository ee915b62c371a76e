"""Settings of Sphinx for `make docs`. The sources are the Markdown files of the whole repository.

They are read from its root, so that links between pages hold on GitHub and on the site alike.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/site")]

from sphinx_gallery.sorting import ExplicitOrder

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
exclude_patterns = ["docs/tutorials/*"]  # docs/gallery is made of them
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
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

TUTORIALS = [
    *("first_run", "only_the_losses", "only_the_planner", "own_environment"),
    *("own_encoder", "official_checkpoint", "auxiliary_losses", "many_processes"),
]
sphinx_gallery_conf = {
    "examples_dirs": "docs/tutorials",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": ExplicitOrder([f"{name}.py" for name in TUTORIALS]),
    "run_stale_examples": True,  # the library may have changed where the tutorial did not
    "capture_repr": (),  # what is shown is printed
    "doc_module": ("torchrl_tdmpc",),  # names in the code link to the API reference
    "min_reported_time": float("inf"),
    "write_computation_times": False,
    "download_all_examples": False,
    "show_signature": False,
}

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
