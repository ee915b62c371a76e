"""What the distributions hold; what setup.py, constraints.txt and the pages say of versions."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string

import pytest
import setuptools  # noqa: F401  (on Python 3.12 and later it brings distutils)
import yaml
from packaging.requirements import Requirement
from test_docs import PAGES, ROOT

import torchrl_tdmpc
from torchrl_tdmpc.envs.dmcontrol import install_command


@pytest.fixture(scope="module")
def project():
    from distutils.core import run_setup

    return run_setup(str(ROOT / "setup.py"), stop_after="init")


@pytest.fixture(scope="module")
def versions(project):
    """The tested ones, oldest first."""
    found = [re.fullmatch(r".* :: Python :: (3\.\d+)", text) for text in project.get_classifiers()]
    return [match[1] for match in found if match]


def test_pages_name_the_tested_versions(project, versions):
    assert versions == [f"3.{minor}" for minor in range(10, 10 + len(versions))]
    assert project.python_requires == f">={versions[0]}"
    spans = {
        page.name: re.findall(r"Python (3\.\d+) to (3\.\d+)", page.read_text(encoding="utf-8"))
        for page in PAGES
    }
    assert spans["README.md"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert (
        re.search(r"torch==[\d.]+\d", (ROOT / "README.md").read_text(encoding="utf-8"))[0] in pinned
    )
    for page, found in spans.items():
        assert set(found) <= {(versions[0], versions[-1])}, page


def test_this_python_is_a_tested_one(versions):
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in versions


def requirements(texts, version):
    """Those that hold on a version of Python, by name."""
    parsed = [Requirement(text) for text in texts]
    environment = {"python_version": version}
    held = [one for one in parsed if one.marker is None or one.marker.evaluate(environment)]
    return {one.name.lower().replace("_", "-"): one for one in held}


def test_the_extra_has_all_that_dm_control_needs_but_labmaze(project, versions):
    theirs = [text for text in importlib.metadata.requires("dm-control") if "extra ==" not in text]
    for version in versions:
        ours = requirements(project.extras_require["dmc"], version)
        needed = requirements(theirs, version)
        if version in ("3.10", "3.11", "3.12"):
            assert ours.keys() == {"dm-control", "mujoco"}
        else:
            assert ours.keys() == needed.keys() - {"labmaze"}


def test_where_labmaze_has_no_wheel_one_command_installs_dm_control(project):
    (pinned,) = (text for text in project.extras_require["dmc"] if text.startswith("dm-control"))
    command = install_command((3, 13))
    named = Requirement(command.split("'")[-2])
    assert named.specifier == Requirement(pinned).specifier
    assert named.name == "dm-control" and "--no-deps" in command
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_package_has_one_version_on_each_python(project, versions):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    for version in versions:
        pins = [name for line in lines for name in requirements([line], version)]
        assert len(set(pins)) == len(pins), version
        wanted = requirements(project.extras_require["test"] + project.install_requires, version)
        assert wanted.keys() <= set(pins)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution of a copy of the tree, unpacked, and the wheel made from that."""
    folder = tmp_path_factory.mktemp("built")
    mess = shutil.ignore_patterns(
        *(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__"),
        *("outputs", "wandb", "build", "dist", "*.egg-info"),
    )
    shutil.copytree(ROOT, folder / "tree", ignore=mess)
    (sdist,) = build("sdist", folder / "tree", folder / "sdist")
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    (source,) = folder.glob("torchrl_tdmpc-*/")
    (wheel,) = build("wheel", source, folder / "wheel")
    return source, wheel


def build(kind, source, output):
    """Call setuptools as a build front end does, without a network."""
    output.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return output.iterdir()


def packaged_files(folder):
    """What a user needs of the package: modules, configurations, the mark that it has types."""
    paths = [
        path for path in (folder / "torchrl_tdmpc").rglob("*") if "__pycache__" not in path.parts
    ]
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file()}


def test_the_wheel_holds_every_file_of_the_package(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    expected = packaged_files(ROOT)
    assert {"torchrl_tdmpc/py.typed", "torchrl_tdmpc/cli/config/ablation/A0.yaml"} < expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_says_what_it_is(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(file.read(name).decode("utf-8"))
    assert metadata["Version"] == torchrl_tdmpc.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert metadata["License-Expression"] == citation["license"]
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text("utf-8").strip()


def test_the_source_distribution_holds_examples_tests_and_pages(built):
    source, _ = built
    made = {"__pycache__", "gallery"}  # by running the code and building the site
    for folder in ("docs", "examples", "test"):
        ours = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.[mnp]*")}
        ours = {path for path in ours if not made & set(path.parts)}
        assert ours and all((source / path).exists() for path in ours), folder
    at_the_top = ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile"]
    assert all((source / name).exists() for name in [*at_the_top, "constraints.txt"])


def test_one_version_is_named_everywhere(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## \[(\d[^]]*)\]", changes, re.MULTILINE)[1]
    named = [project.get_version(), citation["version"], newest]
    assert named == [torchrl_tdmpc.__version__] * 3
