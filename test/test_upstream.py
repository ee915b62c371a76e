"""The contributions to TorchRL: what places changes, and that each folder is whole."""

from __future__ import annotations

import subprocess

import pytest

from upstream.contributions import Contribution, apply, contributions, with_needs
from upstream.edits import AnchorError, Source, Tree

TEXT = '''\
import torch


class Planner:
    """Plans."""

    def plan(
        self,
        latent,
    ):
        value = latent
        return value

    def other(self):
        return self.plan(1)


class Another:
    def plan(self):
        value = 2
        return value
'''


def source():
    return Source("planner.py", TEXT)


def test_lines_come_after_before_and_in_the_place_of_an_anchor():
    file = source()
    file.after("import torch", "import math")
    plan = file.within("class Planner").within("def plan(")
    plan.replace("value = latent", "value = latent + 1\nvalue = value * 2")
    plan.before("return value", "assert value")
    file.within("class Another").replace("value = 2", "value = 3", through="return")
    assert file.text == TEXT.replace("import torch\n", "import torch\nimport math\n").replace(
        "        value = latent\n",
        "        value = latent + 1\n        value = value * 2\n        assert value\n",
    ).replace("        value = 2\n        return value\n", "        value = 3\n")


def test_a_block_grows_with_what_is_put_into_it():
    file = source()
    planner = file.within("class Planner")
    planner.within("def other(").replace("return self.plan(1)", "\nfirst = 1\n\nreturn first\n")
    planner.append("def last(self):\n    return 0", indent=4)
    file.append("END = True")
    text = file.text
    assert (
        "        first = 1\n\n        return first\n    def last(self):\n        return 0\n" in text
    )
    assert text.index("def last") < text.index("class Another")
    assert text.endswith("END = True\n")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda file: file.after("import numpy", ""),
            "planner.py has 0 lines with the anchor 'import numpy'; one is needed.",
        ),
        (
            lambda file: file.within("def plan("),
            "planner.py has 2 lines with the anchor 'def plan('; one is needed.",
        ),
        (
            lambda file: file.within("class Planner").replace("value =", "", through="value = 2"),
            "planner.py has no line with 'value = 2' after 'value ='.",
        ),
    ],
)
def test_a_place_that_is_not_there_once_is_refused(edit, sentence):
    file = source()
    with pytest.raises(AnchorError) as error:
        edit(file)
    assert str(error.value) == sentence
    assert file.text == TEXT


def contribution(folder, name, change, needs=()):
    (folder / name / "test").mkdir(parents=True)
    (folder / name / "test" / f"test_{name[:2]}.py").write_text(f"# {name}\n")
    return Contribution(folder / name, needs, change)


def test_the_patch_of_a_contribution_is_its_own_change_alone(tmp_path):
    root = tmp_path / "theirs"
    (root / "torchrl").mkdir(parents=True)
    (root / "torchrl" / "planner.py").write_text(TEXT)

    def first(tree):
        tree.file("torchrl/planner.py").replace("import torch", "import math")

    def second(tree):
        tree.file("torchrl/planner.py").after("import math", "import random")

    below = contribution(tmp_path, "01-below", first)
    above = contribution(tmp_path, "02-above", second, ("01-below",))
    stack = with_needs(above, [below, above])
    assert stack == [below, above]
    tree = apply(stack, root, before=tmp_path / "before")
    assert (root / "torchrl" / "planner.py").read_text() == TEXT

    # git agrees, on the files as they are with the first one
    tree_below = apply([below], root)
    tree_below.write(root)
    (tmp_path / "above.patch").write_text(tree.patch())
    subprocess.run(["git", "apply", tmp_path / "above.patch"], cwd=root, check=True)
    text = TEXT.replace("import torch", "import math\nimport random")
    assert (root / "torchrl" / "planner.py").read_text() == text
    assert (root / "test" / "test_02.py").read_text() == "# 02-above\n"
    assert "test_01.py" not in tree.patch()


def test_a_contribution_stands_on_earlier_ones_only(tmp_path):
    one = contribution(tmp_path, "01-one", None, ("02-two",))
    two = contribution(tmp_path, "02-two", None)
    with pytest.raises(ValueError, match=r"01-one needs 02-two, which is not before it\."):
        with_needs(one, [one, two])


def test_a_new_file_takes_no_place_that_is_taken(tmp_path):
    (tmp_path / "taken.py").write_text("")
    with pytest.raises(AnchorError, match=r"taken\.py is there already"):
        Tree(tmp_path).new("taken.py", "")


@pytest.mark.parametrize("one", contributions(), ids=lambda one: one.name)
def test_each_contribution_has_its_text_and_its_tests(one):
    text = (one.folder / "README.md").read_text()
    assert text.startswith("# [")  # a pull request's title
    assert one.tests
    for path in one.tests:
        lines = (one.folder / path).read_text().rstrip().splitlines()
        assert lines[-2:] == ['if __name__ == "__main__":', "    pytest.main()"]
