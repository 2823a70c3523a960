"""Both networks on a GPU against the CPU, and the sparse one on the GPU's kernels without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton_support  # skips where Triton is missing
from torch import Tensor, nn

from mink_decouple.data.collate import Batch, collate, point_view, voxel_view
from mink_decouple.models.device_pyramid import pyramid_on
from mink_decouple.models.minkunet import MinkUNet
from mink_decouple.models.segmenter import build_model
from mink_decouple.sparse import functional, normalization, triton_kernel, triton_runtime
from mink_decouple.sparse.triton_launch import Kernel
from mink_decouple.sparse.triton_normalization import Normalize

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLANES = (16, 16, 32, 32, 32, 16, 16, 16)


def room(n: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, 3)) * [2, 2, 0.3]).astype(np.float32)


def voxels(*sizes: int) -> Batch:
    clouds = [room(n, n) for n in sizes]
    return collate([voxel_view("hall", c, c * 3, np.zeros(len(c), int), 0.1) for c in clouds])


def points(*sizes: int) -> Batch:
    rng = np.random.default_rng(0)
    return collate([point_view("hall", room(n, n), room(n, 9), np.zeros(n, int), (4, 4, 4, 4), 8, rng) for n in sizes])


def outputs(network: nn.Module, batch: Batch) -> list[Tensor]:
    """Logits of a training step, gradients of all parameters, statistics after it, and logits of inference; float64."""
    network.train().zero_grad()
    out = network(batch)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.device)
    (out * weight).sum().backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    with torch.inference_mode():
        inferred = network.eval()(batch)
    return [t.detach().double().cpu().clone() for t in (out, *grads, *network.buffers(), inferred)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= tolerance * (b.norm() + 1e-3), (a.shape, float((a - b).norm()), float(b.norm()))


@pytest.mark.slow
def test_a_sparse_network_on_the_kernels_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = MinkUNet(3, (1,) * 8, PLANES, stem=16, stem_kernel=3)
    batch = voxels(30, 20)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    theirs = outputs(network, batch)
    network.load_state_dict(state)
    device = triton_support.DEVICE
    if device.type == "cpu":
        monkeypatch.setattr(functional, "_fused", lambda x: triton_kernel)
        monkeypatch.setattr(normalization, "_fused", lambda x, bn: Normalize)
    launched = []
    matmul = triton_kernel.gather_matmul_sum

    def counting(*arguments: object, **options: object) -> Tensor:
        launched.append("epilogue" in options)
        out: Tensor = matmul(*arguments, **options)  # type: ignore[arg-type]
        return out

    monkeypatch.setattr(triton_kernel, "gather_matmul_sum", counting)
    ours = outputs(network.to(device), batch.to(device))
    assert_same(ours, theirs, 2e-3)
    # Every convolution of inference but those of one offset ends with its normalisation.
    assert sum(launched) == 1 + 4 + 4 + 2 * 8


@pytest.mark.gpu
@needs_gpu
def test_triton_works_on_this_gpu() -> None:
    assert triton_runtime.obstacle(torch.device("cuda")) is None
    assert Kernel.direct


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("switch", ["1", "0"])
def test_minkunet_equals_the_cpu_s_with_and_without_triton(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(triton_runtime.SWITCH, switch)
    triton_runtime._obstacle.cache_clear()
    network = build_model("minkunet", "tiny", 3, 5)
    batch = voxels(3000, 2000)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    theirs = outputs(network, batch)
    network.load_state_dict(state)
    assert_same(outputs(network.cuda(), batch.to("cuda")), theirs, 1e-2)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        half = network.eval()(batch.to("cuda")).double().cpu()
    assert (half - theirs[-1]).norm() < 0.05 * theirs[-1].norm()
    triton_runtime._obstacle.cache_clear()


@pytest.mark.gpu
@needs_gpu
def test_randla_equals_the_cpu_s_on_a_pyramid_of_the_gpu() -> None:
    network = build_model("randla", "4", 3, 5, head="linear")
    batch = points(3000, 2000)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    theirs = outputs(network, batch)
    network.load_state_dict(state)
    moved = batch.to("cuda")
    levels = pyramid_on(moved.coords, batch.sizes.tolist(), (4, 4, 4, 4), 8)
    assert batch.pyramid is not None
    for level, expected in zip(levels, batch.pyramid, strict=True):
        assert torch.equal(level.neighbors.cpu(), expected.neighbors) and torch.equal(level.up.cpu(), expected.up)
    on_gpu = SimpleNamespace(feats=moved.feats, pyramid=levels)
    assert_same(outputs(network.cuda(), on_gpu), theirs, 1e-2)  # type: ignore[arg-type]


@pytest.mark.gpu
@needs_gpu
def test_randla_trains_in_bfloat16() -> None:
    network = build_model("randla", "4", 3, 5, head="linear").cuda().train()
    batch = points(900, 800).to("cuda")
    exact = network(batch)
    with torch.autocast("cuda", torch.bfloat16):
        half = network(batch).float()
    assert (half - exact).norm() < 0.1 * exact.norm()
    half.square().sum().backward()
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 and torch.isfinite(grad).all() for grad in grads)
