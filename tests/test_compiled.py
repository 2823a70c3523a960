"""A place for compiled kernels, also where neither the package nor the user has one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mink_decouple import compiled, jit
from mink_decouple.engine import doctor

PACKAGE = Path(compiled.__file__).parent


@pytest.mark.parametrize("before", ["", "import numba; "], ids=["alone", "numba first"])
def test_without_a_place_kernels_are_compiled_for_one_process(tmp_path, before):
    """As of a read-only install and a user without a home."""
    site, none = tmp_path / "site", tmp_path / "a_file"
    shutil.copytree(PACKAGE, site / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    none.touch()
    for folder in (site / PACKAGE.name, *(site / PACKAGE.name).iterdir()):
        if folder.is_dir():
            (folder / "__pycache__").touch()  # a file: nobody can write into it, not even root
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(none), "XDG_CACHE_HOME": str(none)}
    environment.pop("NUMBA_CACHE_DIR", None)
    code = before + (
        "import os, mink_decouple.data.cells as cells; from mink_decouple.engine import doctor; "
        "print(cells.__file__); print(os.environ['NUMBA_CACHE_DIR']); "
        "print([f.state for f in doctor._compiled_cache()])"
    )
    run = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    source, place, states = run.stdout.splitlines()
    assert source.startswith(str(site)) and states == "['slow']"
    assert not Path(place).exists(), "gone when the process has ended"


@pytest.mark.parametrize("given", [True, False])
def test_a_place_that_is_there_is_taken(tmp_path, monkeypatch, given):
    if given:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    else:
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.setattr(compiled, "BESIDE", tmp_path / "beside")  # that of an image is nobody's to write
    before = os.environ.get("NUMBA_CACHE_DIR")
    compiled.ensure_place()
    assert os.environ.get("NUMBA_CACHE_DIR") == before
    assert compiled.kept_in() == (tmp_path / "kept" if given else compiled.BESIDE)
    assert [finding.state for finding in doctor._compiled_cache()] == ["ok"]


def test_a_user_without_a_home_gets_no_folder_of_that_name(tmp_path, monkeypatch):
    """`~` stays as it is where nobody knows what it stands for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiled.os.path, "expanduser", lambda text: text)
    (tmp_path / "a_file").touch()
    monkeypatch.setattr(compiled, "BESIDE", tmp_path / "a_file" / "beside")
    assert compiled.kept_in() is None and [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_processes_that_compile_at_once_never_get_each_other_s_code(tmp_path):
    """One writes its index while the other, which has read it before, is between its own index and its code."""
    first, second = (jit.CacheFile(str(tmp_path), "f", "stamp") for _ in range(2))
    second._load_index = dict
    write = first._save_data

    def held_up(name, data):
        second.save("float64", "code for float64")
        write(name, data)

    first._save_data = held_up
    first.save("float32", "code for float32")
    reader = jit.CacheFile(str(tmp_path), "f", "stamp")
    for kind in ("float32", "float64"):
        assert reader.load(kind) in (None, f"code for {kind}")
    assert reader.load("float32") == "code for float32"


def test_every_cached_kernel_has_such_a_file():
    """Fails where a numba keeps its files otherwise."""
    from mink_decouple.data import neighbors
    from mink_decouple.models import row_kernels
    from mink_decouple.sparse import cpu_kernel

    for module in (neighbors, row_kernels, cpu_kernel):
        kept = [value for value in vars(module).values() if getattr(value, "_cache", None) and value.stats.cache_path]
        assert kept and all(type(value._cache._cache_file) is jit.CacheFile for value in kept)


def test_a_change_of_a_helper_in_another_file_compiles_its_callers_anew(tmp_path):
    """numba's own cache goes on with the old helper: it looks at the file of the caller alone."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (site / PACKAGE.name / "helper.py").write_text(HELPER.format(1))
    (site / PACKAGE.name / "caller.py").write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": str(site), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    code = f"from {PACKAGE.name}.caller import call; print(call(1), sum(call.stats.cache_hits.values()))"

    def run():
        command = [sys.executable, "-B", "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert run() == ["2", "0"] and run() == ["2", "1"]
    (site / PACKAGE.name / "helper.py").write_text(HELPER.format(10))
    assert run() == ["11", "0"]


HELPER = """
from mink_decouple.jit import njit

@njit(cache=True, inline="always")
def add(x):
    return x + {}
"""
CALLER = """
from mink_decouple.helper import add
from mink_decouple.jit import njit

@njit(cache=True)
def call(x):
    return add(x)
"""
