"""An install that is not editable has all that a checkout has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "mink_decouple", "configs")


def test_a_wheel_holds_the_configurations_and_they_load(tmp_path):
    pytest.importorskip("setuptools", "70.1", reason="one that builds wheels; there may be no network to fetch it")
    pytest.importorskip("pip")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(source),
    ]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), site, "zip")
    code = "from mink_decouple.config import configs_dir, load_config; print(configs_dir()); load_config(recipe='best')"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    inside = site / "mink_decouple" / "configs"
    assert found.stdout.strip() == str(inside)
    names = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(inside) for path in inside.rglob("*.yaml")} == names
