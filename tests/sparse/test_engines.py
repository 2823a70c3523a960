"""Choosing an engine; what both compute is compared in tests/minkowski."""

import sys

import pytest
import torch
from voxel_sets import random_voxels

from mink_decouple.models.minkunet import MinkUNet
from mink_decouple.sparse import engines
from mink_decouple.sparse.engines import CHOICES, engine, import_minkowski


def test_auto_is_the_native_engine() -> None:
    assert engine("auto") is engine("native") and engine("auto").name == "native"
    assert MinkUNet.from_variant("tiny", 3).engine.name == "native"


def test_an_unknown_engine_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"model\.engine is 'spconv'; choose one of auto, native, minkowski"):
        engine("spconv")
    assert CHOICES == ("auto", "native", "minkowski")


def test_what_keeps_minkowskiengine_from_importing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "MinkowskiEngine":
                raise ImportError("libc10.so: undefined symbol:\n _ZN3c10")

    monkeypatch.delitem(sys.modules, "MinkowskiEngine", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ValueError) as caught:
        import_minkowski()
    text = str(caught.value)
    assert "\n" not in text and "undefined symbol" in text and "docker/install_minkowski.sh" in text


def test_a_build_for_the_cpu_is_refused_on_a_gpu_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class CpuBuild:
        is_cuda_available = staticmethod(lambda: False)

    monkeypatch.setattr(engines, "import_minkowski", lambda: CpuBuild)
    with pytest.raises(ValueError, match=r"CPU build here: .*--cuda.*--device cpu"):
        engines.require_device("minkowski", torch.device("cuda"))
    for name, device in (("minkowski", "cpu"), ("native", "cuda"), (None, "cuda")):
        engines.require_device(name, torch.device(device))


def test_the_native_engine_answers_in_the_order_of_the_rows() -> None:
    voxels = random_voxels(3)
    feats = torch.arange(len(voxels), dtype=torch.float32).unsqueeze(1)
    assert torch.equal(engine("native").apply(lambda x: x, voxels, feats, 1), feats)
