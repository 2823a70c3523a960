"""What keeps Triton off a GPU, with a stand-in for the GPU."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from mink_decouple.sparse import triton_runtime
from mink_decouple.sparse.triton_runtime import obstacle, usable, works

GPU = torch.device("cuda", 0)


class FailingKernel:
    """Launched, it fails as Triton does where there is no C compiler."""

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        raise RuntimeError("Failed to find C compiler.\n Please specify via CC")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU on which everything is well until the first kernel, on a machine that need not have one."""
    monkeypatch.setattr(triton_runtime, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(triton_runtime, "INTERPRETED", False)
    monkeypatch.setattr(triton_runtime, "_count", FailingKernel())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    triton_runtime._obstacle.cache_clear()
    yield
    triton_runtime._obstacle.cache_clear()


def test_a_kernel_that_fails_is_reported_once_and_never_raises() -> None:
    with pytest.warns(UserWarning, match="plain torch serves") as caught:
        assert not works(GPU) and not works(GPU)
    assert len(caught) == 1
    reason = obstacle(GPU)
    assert reason is not None and "Failed to find C compiler. Please" in reason


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("triton", None, "not installed"),
        ("triton", SimpleNamespace(__version__="3.1.0"), "Triton 3.1.0 is older than 3.2"),
        ("INTERPRETED", True, "TRITON_INTERPRET"),
    ],
)
def test_what_is_missing_is_named(name: str, value: object, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_runtime, name, value)
    assert reason in str(obstacle(GPU))


def test_old_cards_other_builds_and_the_switch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "compute capability is below 8.0" in str(obstacle(GPU))
    triton_runtime._obstacle.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "no CUDA build" in str(obstacle(GPU))
    triton_runtime._obstacle.cache_clear()
    monkeypatch.setenv(triton_runtime.SWITCH, "0")
    assert obstacle(GPU) == "MINK_DECOUPLE_TRITON is 0"


def test_other_devices_are_left_to_plain_torch() -> None:
    assert "not the current device" in str(obstacle(torch.device("cuda", 1)))
    assert not works(torch.device("cpu")) and not usable(torch.ones(2))
