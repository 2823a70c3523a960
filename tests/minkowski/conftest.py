"""The reason to skip where MinkowskiEngine is not installed, and one thread for tiny inputs."""

from collections.abc import Iterator

import pytest
import torch
from paired_voxels import CASES, draw_voxels
from torch import Tensor

from mink_decouple.sparse.engines import Engine, engine


@pytest.fixture(scope="session")
def minkowski() -> Engine:
    """MinkowskiEngine behind the interface of the engines."""
    try:
        return engine("minkowski")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=CASES, ids=[f"{kind}-{items}" for kind, items in CASES])
def voxels(request: pytest.FixtureRequest) -> Tensor:
    """(N, 4) int32 distinct voxels ``[batch, x, y, z]`` in random row order."""
    kind, items = request.param
    return draw_voxels(kind, items)
