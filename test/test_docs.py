"""The documentation holds: its code runs, its links lead somewhere, its settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG = yaml.safe_load((ROOT / "torchrl_tdmpc/cli/config/tdmpc2_multigamma.yaml").read_text())
for hydra in ("defaults", "hydra"):  # settings of Hydra itself
    CONFIG.pop(hydra)

CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# env.task, train.seed_steps=20: a section of the configuration, a dot and a key
SECTIONS = [key for key, value in CONFIG.items() if isinstance(value, dict)]
SETTING = re.compile(rf"(?<![\w./-])({'|'.join(SECTIONS)})\.([a-z]\w*)(?!\w*\()")
FILE_ENDINGS = {"csv", "jsonl", "md", "py", "yaml"}  # train.csv is a file, not a setting


def parametrize_pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


@pytest.fixture
def seeded():
    """A seed, and torch's generators and thread count left as they were."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.docs
@pytest.mark.filterwarnings("ignore:No target network updater")  # where a page shows losses alone
@pytest.mark.filterwarnings("ignore:The 'optimizer' hook stage")  # TorchRL, of its own trainer
@parametrize_pages
def test_python_blocks_run(page, seeded):
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": page.stem}
    for block in CODE_BLOCK.finditer(text):
        language, code = block.groups()
        if language == "python":
            line = text.count("\n", 0, block.start(2))
            # Blank lines in front: a traceback then names the page's own line
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_each_way_of_composing_has_code_that_runs():
    page = ROOT / "docs/composing.md"
    rows = re.findall(r"^\| .* \| \[.*\]\((.*?)\) \|$", page.read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 30
    for target in rows:
        name, _, anchor = target.partition("#")
        sections = sections_of(page.parent / name if name else page)
        assert "```python" in sections[anchor], target


@parametrize_pages
def test_links_lead_somewhere(page):
    prose = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    missing = []
    for target in LINK.findall(prose):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            missing.append(target)
    assert not missing


@parametrize_pages
def test_settings_exist(page):
    prose = re.sub(
        r"^```python\n.*?^```$",
        "",
        page.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    named = {
        f"{section}.{key}" for section, key in SETTING.findall(prose) if key not in FILE_ENDINGS
    }
    assert named <= set(all_settings())


def test_training_page_names_every_setting():
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    missing = [name for name in all_settings() if f"`{name}`" not in text]
    assert not missing


def all_settings():
    """``seed``, ``env.task`` and so on."""
    for key, value in CONFIG.items():
        yield from (f"{key}.{name}" for name in value) if key in SECTIONS else [key]


def headings(page):
    """The anchors that a page's headings give."""
    return set(sections_of(page))


def sections_of(page):
    """The text below each heading of a page, by the heading's anchor."""
    _, *parts = re.split(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in parts[::2]]
    return dict(zip(anchors, parts[1::2]))
