"""What setup.py, constraints.txt and the pages say of Python versions and of dm_control."""

from __future__ import annotations

import importlib.metadata
import re
import sys

import pytest
import setuptools  # noqa: F401  (on Python 3.12 and later it brings distutils)
from packaging.requirements import Requirement
from test_docs import PAGES, ROOT

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
