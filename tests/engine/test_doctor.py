import configparser
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from mink_decouple.engine import doctor
from mink_decouple.sparse import engines


def by_subject() -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine()}


def test_every_finding_is_one_line_with_a_known_state() -> None:
    findings = doctor.examine()
    assert all(finding.state in doctor.STATES and "\n" not in str(finding) for finding in findings)
    assert {"machine", "torch", "engine native on cpu", "libraries"} <= {finding.subject for finding in findings}


def test_the_native_engine_works_here() -> None:
    finding = by_subject()["engine native on cpu"]
    assert finding.state in ("ok", "slow") and "agrees with a dense convolution" in finding.text


def test_an_engine_with_wrong_results_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    good = engines.engine("native")
    wrong = dataclasses.replace(good, apply=lambda *a: good.apply(*a).flip(0))
    monkeypatch.setattr(engines, "engine", lambda name: wrong)
    finding = by_subject()["engine native on cpu"]
    assert finding.state == "broken" and "wrong results" in finding.text


def test_a_missing_library_is_broken_or_missing_by_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "laspy", None)
    found = by_subject()
    assert found["tqdm"].state == "broken" and "pip install tqdm" in found["tqdm"].text
    assert found["laspy"].state == "missing" and "LAS files" in found["laspy"].text


def test_a_missing_minkowskiengine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    finding = by_subject()["engine minkowski"]
    assert finding.state == "missing" and "docker/install_minkowski.sh" in finding.text


def test_a_cpu_without_the_fused_kernels_is_called_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    from mink_decouple.sparse import cpu_kernel

    monkeypatch.setattr(cpu_kernel, "FUSED", False)
    finding = by_subject()["engine native on cpu"]
    assert finding.state == "slow" and "AVX2" in finding.text


def test_threads_are_called_slow_only_where_a_variable_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: set(range(10000)), raising=False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert "threads" not in by_subject()  # two hardware threads of one core: torch uses one of them by itself
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    finding = by_subject()["threads"]
    assert finding.state == "slow" and "unset MKL_NUM_THREADS" in finding.text


def test_a_full_disk_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2**20

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage)
    assert by_subject()["disk"].state == "broken"


def test_the_libraries_looked_for_are_the_package_s_own() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    required = {line.split(">")[0] for line in config["options"]["install_requires"].split()}
    assert set(doctor.NEEDED) == required - {"torch"}


def test_the_comparison_is_with_a_dense_convolution() -> None:
    assert doctor.convolution_error(engines.engine("native"), "cpu") < 1e-6
    assert torch.is_grad_enabled()
