"""The workflow for GitHub tests the versions that setup.cfg promises, with extras and commands that exist."""

import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mink_decouple.cli import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def version(text):
    return tuple(int(part) for part in text.split("."))


def test_the_oldest_versions_are_those_of_the_package_and_every_system_is_there(workflow, setup):
    jobs = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    python = re.fullmatch(r">=([\d.]+)", setup["options"]["python_requires"])[1]
    torch = re.search(r"torch>=([\d.]+)", setup["options"]["install_requires"])[1]
    assert min((job["python"] for job in jobs), key=version) == python
    assert min((job["torch"] for job in jobs if job["torch"] != "newest"), key=version) == torch
    assert any(job["torch"] == "newest" for job in jobs)
    assert {job["os"].split("-")[0] for job in jobs} == {"ubuntu", "macos", "windows"}


def test_its_commands_and_extras_exist(workflow, setup):
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    extras = {extra for line in lines for found in re.findall(r"\.\[([\w,]+)\]", line) for extra in found.split(",")}
    assert extras and extras <= set(setup["options.extras_require"])
    commands = {found for line in lines for found in re.findall(r"mink-decouple (\w+)", line)}
    assert commands and commands <= set(COMMANDS)
    targets = {found for line in lines for found in re.findall(r"^make (\w+)", line)}
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)


def test_the_settings_of_its_short_trainings_are_settings(workflow):
    from mink_decouple.config import configs_dir, load_config, parse_overrides

    lines = [step["run"] for step in workflow["jobs"]["minimal"]["steps"] if "--set" in step.get("run", "")]
    assert len(lines) == 2
    for line in lines:
        backbone = "randla" if "randla" in line else "minkunet"
        config = load_config(
            configs_dir() / "base.yaml", backbone=backbone, overrides=parse_overrides(re.findall(r"--set (\S+)", line))
        )
        assert config.schedule.steps == 2 and config.schedule.pretrain.epochs == 1


def test_the_pinned_triton_is_the_one_that_the_pinned_torch_asks_for():
    """Else pip finds no solution: its build for CUDA, which PyPI has, asks for one release."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = [found for line in metadata.requires("torch") or () if (found := Requirement(line)).name == "triton"]
    if not asked or metadata.version("torch").partition("+")[0] != pins["torch"]:
        pytest.skip("torch here is another release than the pinned one, or a build without Triton")
    assert all(found.specifier.contains(pins["triton"]) for found in asked)
