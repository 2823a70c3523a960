from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data import transforms
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import subsample
from mink_decouple.data.sampling import SampleIndex
from mink_decouple.data.transforms import TRANSFORMS, Sample, assemble_features, compose, feature_width, take


def sample(seed: int = 0, count: int = 200) -> Sample:
    rng = np.random.default_rng(seed)
    coords = rng.uniform(-2, 2, (count, 3)).astype(np.float32)
    normal = rng.normal(size=(count, 3))
    return Sample(
        name="room",
        coords=coords,
        features={
            "rgb": rng.random((count, 3)).astype(np.float32),
            "height": coords[:, 2] + 2,
            "intensity": rng.random(count).astype(np.float32),
            "normal": (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32),
        },
        target=rng.integers(-1, 3, count),
        points=rng.permutation(1000)[:count],
        center=np.array([1.0, 2.0, 3.0]),
    )


def arrays(s: Sample) -> list[np.ndarray]:
    return [s.coords, *s.features.values(), s.target, s.points, s.center]


def run(f: Callable[..., Sample], s: Sample, seed: int, **options: object) -> Sample:
    return f(s, np.random.default_rng(seed), **options)


def distances(coords: np.ndarray) -> np.ndarray:
    return np.linalg.norm(coords[:, None].astype(np.float64) - coords[None], axis=-1)


@pytest.mark.parametrize("name", list(TRANSFORMS))
@pytest.mark.parametrize("count", [200, 1, 0])
def test_inputs_stay_untouched_and_rows_stay_aligned(name: str, count: int) -> None:
    for seed in range(5):
        before = sample(seed, count)
        copies = [array.copy() for array in arrays(before)]
        after = run(TRANSFORMS[name], before, seed)
        assert all(np.array_equal(a, b) for a, b in zip(arrays(before), copies, strict=True))
        assert all(len(array) == len(after) for array in arrays(after)[:-1])
        row = {point: i for i, point in enumerate(before.points)}
        np.testing.assert_array_equal(after.target, before.target[[row[point] for point in after.points]])
        assert after.coords.dtype == np.float32
        assert all(column.dtype == np.float32 for column in after.features.values())


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_same_generator_state_gives_the_same_sample(name: str) -> None:
    first, second = (run(TRANSFORMS[name], sample(), 3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(second), strict=True))


@given(seed=st.integers(0, 10**6), name=st.sampled_from(["rotate_z", "tilt", "flip"]))
@settings(max_examples=30, deadline=None)
def test_rotations_and_flips_are_rigid(seed: int, name: str) -> None:
    before = sample(seed, 40)
    after = run(TRANSFORMS[name], before, seed)
    np.testing.assert_allclose(distances(after.coords), distances(before.coords), atol=1e-5)
    # Normals turn with the surface: their angles to differences of points are unchanged.
    angle = [(s.features["normal"][:-1] * np.diff(s.coords, axis=0)).sum(1) for s in (before, after)]
    np.testing.assert_allclose(angle[0], angle[1], atol=1e-5)


def test_rotation_about_z_keeps_z_and_height_and_turns_fully() -> None:
    before = sample()
    angles = []
    for seed in range(60):
        after = run(transforms.rotate_z, before, seed)
        np.testing.assert_array_equal(after.coords[:, 2], before.coords[:, 2])
        np.testing.assert_array_equal(after.features["height"], before.features["height"])
        turned = [np.arctan2(s.coords[0, 1], s.coords[0, 0]) for s in (before, after)]
        angles.append((turned[1] - turned[0]) % (2 * np.pi))
    assert min(angles) < 0.6 and max(angles) > 5.6


def test_quarter_turns_are_exact() -> None:
    before = sample()
    seen = set()
    for seed in range(30):
        after = run(transforms.rotate_z, before, seed, quarter=True)
        x, y = before.coords[:, 0], before.coords[:, 1]
        turns = [(x, y), (-y, x), (-x, -y), (y, -x)]
        match = [k for k, turn in enumerate(turns) if np.array_equal(after.coords[:, :2], np.stack(turn, axis=1))]
        assert len(match) == 1
        seen.update(match)
    assert seen == {0, 1, 2, 3}


def test_tilt_stays_small_and_height_follows_z() -> None:
    before = sample()
    after = run(transforms.tilt, before, 1, degrees=3)
    change = after.coords[:, 2] - before.coords[:, 2]
    np.testing.assert_allclose(after.features["height"] - before.features["height"], change, atol=1e-5)
    normal = run(transforms.tilt, up(), 1, degrees=3).features["normal"][0]
    assert np.cos(np.deg2rad(3)) ** 2 <= normal[2] < 1


def up() -> Sample:
    s = sample(0, 1)
    return Sample("a", s.coords, {"normal": np.array([[0, 0, 1]], np.float32)}, s.target, s.points, s.center)


def test_flip_probabilities_choose_the_axes() -> None:
    before = sample()
    np.testing.assert_array_equal(run(transforms.flip, before, 0, x=1, y=0).coords, before.coords * [-1, 1, 1])
    np.testing.assert_array_equal(run(transforms.flip, before, 0, x=0, y=1).coords, before.coords * [1, -1, 1])


@pytest.mark.parametrize("anisotropic", [False, True])
def test_scale_multiplies_coordinates_and_height(anisotropic: bool) -> None:
    before = sample()
    after = run(transforms.scale, before, 2, low=0.5, high=2, anisotropic=anisotropic)
    factors = after.coords[0] / before.coords[0]
    np.testing.assert_allclose(after.coords, before.coords * factors, rtol=1e-5)
    np.testing.assert_allclose(after.features["height"], before.features["height"] * factors[2], rtol=1e-5)
    assert (np.ptp(factors) > 0.01) == anisotropic
    assert (factors >= 0.5).all() and (factors <= 2).all()


def test_normals_stay_orthogonal_to_a_stretched_plane() -> None:
    rng = np.random.default_rng(0)
    normal = np.array([1, 2, 3]) / np.sqrt(14)
    coords = rng.normal(size=(50, 3))
    coords -= np.outer(coords @ normal, normal)
    features = {"normal": np.tile(normal, (50, 1)).astype(np.float32)}
    plane = Sample("a", coords.astype(np.float32), features, np.zeros(50, int), np.arange(50), np.zeros(3))
    after = run(transforms.scale, plane, 0, low=0.3, high=3, anisotropic=True)
    np.testing.assert_allclose((after.coords * after.features["normal"]).sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(after.features["normal"], axis=1), 1, atol=1e-5)


def test_jitter_stays_within_its_clip() -> None:
    before = sample()
    shift = run(transforms.jitter, before, 0, sigma=0.1, clip=0.05).coords - before.coords
    assert 0.04 < np.abs(shift).max() <= 0.05 + 1e-6


def test_elastic_moves_near_points_alike() -> None:
    before = sample(0, 400)
    after = run(transforms.elastic, before, 0, granularity=1.0, magnitude=0.2)
    shift = (after.coords - before.coords).astype(np.float64)
    assert 0.02 < shift.std() < 0.4
    apart = distances(before.coords)
    np.fill_diagonal(apart, np.inf)
    near = apart.argmin(axis=1)
    assert np.abs(shift - shift[near]).mean() < 0.5 * np.abs(shift - np.roll(shift, 7, axis=0)).mean()
    np.testing.assert_allclose(after.features["height"] - before.features["height"], shift[:, 2], atol=1e-5)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_labelled_points_are_never_dropped(seed: int, share: float) -> None:
    before = sample(seed, 100)
    after = run(transforms.drop_points, before, seed, share=share)
    assert set(before.points[before.target >= 0]) <= set(after.points)
    assert len(after) >= 1


def test_dropping_all_unlabelled_points_keeps_one() -> None:
    s = sample(0, 10)
    bare = Sample(s.name, s.coords, s.features, np.full(10, -1), s.points, s.center)
    assert len(run(transforms.drop_points, bare, 0, share=1.0)) == 1


@pytest.mark.parametrize("name", ["colour_contrast", "colour_shift", "colour_jitter", "drop_colour"])
def test_colours_stay_in_range_and_only_colours_change(name: str) -> None:
    before = sample()
    changed = 0
    for seed in range(20):
        after = run(TRANSFORMS[name], before, seed)
        rgb = after.features["rgb"]
        assert rgb.min() >= 0 and rgb.max() <= 1
        changed += not np.array_equal(rgb, before.features["rgb"])
        np.testing.assert_array_equal(after.coords, before.coords)
        np.testing.assert_array_equal(after.features["intensity"], before.features["intensity"])
    assert changed > 0
    colourless = Sample("a", before.coords, {}, before.target, before.points, before.center)
    assert run(TRANSFORMS[name], colourless, 0).features == {}


def test_dropped_colour_is_zero_in_the_input() -> None:
    after = run(transforms.drop_colour, sample(), 0, probability=1)
    assert (assemble_features(after.features, after.coords, ["rgb"]) == 0).all()


def test_contrast_stretches_to_the_full_range_at_most() -> None:
    before = sample()
    dull = Sample(
        "a", before.coords, {"rgb": 0.4 + 0.2 * before.features["rgb"]}, before.target, before.points, up().center
    )
    after = run(transforms.colour_contrast, dull, 0, probability=1).features["rgb"]
    assert np.ptp(dull.features["rgb"]) < np.ptp(after) <= 1


def test_compose_applies_in_the_order_of_the_table_and_skips_what_is_off() -> None:
    spec = {"jitter": {"sigma": "1e-3"}, "rotate_z": True, "flip": False, "tilt": None, "scale": {"anisotropic": True}}
    before, rng = sample(), np.random.default_rng(4)
    expected = transforms.rotate_z(before, rng)
    expected = transforms.scale(expected, rng, anisotropic=True)
    expected = transforms.jitter(expected, rng, sigma=0.001)
    for mapping in (spec, dict(reversed(spec.items()))):
        np.testing.assert_array_equal(run(compose(mapping), before, 4).coords, expected.coords)
    assert run(compose({}), before, 0) is before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"rotate": True}, r"transform 'rotate': choose from drop_points, .*rotate_z"),
        ({"jitter": {"sd": 1}}, r"transform jitter: unknown parameter 'sd'; choose from sigma, clip"),
        ({"jitter": {"sigma": "much"}}, r"transform jitter\.sigma: 'much'; must be a number"),
        ({"jitter": {"sigma": None}}, r"jitter\.sigma: None; must be a number"),
        ({"rotate_z": {"quarter": 1}}, r"rotate_z\.quarter: 1; must be true or false"),
        ({"jitter": 0.1}, r"transform jitter: 0\.1; must be a mapping"),
    ],
)
def test_compose_names_the_wrong_entry(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(spec)


def test_take_centres_and_measures_height_from_the_lowest_point_of_the_scene() -> None:
    rng = np.random.default_rng(0)
    cloud = PointCloud("a", rng.uniform(10, 20, (300, 3)).astype(np.float32), labels=rng.integers(0, 3, 300))
    grid = subsample(cloud, 1.0)
    index = SampleIndex("a", np.array([5, 2, 9]), np.array([11.0, 12.0, 13.0]))
    for centre in ("xyz", "xy", ""):
        s = take(grid, index, grid.labels, centre)
        np.testing.assert_allclose(s.coords + s.center, grid.coords[[5, 2, 9]], rtol=1e-6)
        assert [axis for axis, c in zip("xyz", s.center, strict=True) if c] == list(centre)
        expected = grid.coords[[5, 2, 9], 2] - grid.coords[:, 2].min()
        np.testing.assert_array_equal(s.features["height"], expected)
        np.testing.assert_array_equal(s.target, grid.labels[[5, 2, 9]])
    with pytest.raises(ValueError, match="centre: 'xw'"):
        take(grid, index, grid.labels, "xw")
    with pytest.raises(ValueError, match="scene a: 2 targets"):
        take(grid, index, grid.labels[:2])


def test_features_are_assembled_in_the_given_order() -> None:
    s = sample()
    names = ["one", "rgb", "height", "xyz", "intensity"]
    rows = assemble_features(s.features, s.coords, names, {"intensity": 0.5})
    assert rows.shape == (200, feature_width(names)) == (200, 9) and rows.dtype == np.float32
    columns = [np.ones((200, 1)), s.features["rgb"] - 0.5, s.features["height"][:, None], s.coords]
    np.testing.assert_allclose(rows, np.hstack([*columns, s.features["intensity"][:, None] / 2]), rtol=1e-6)


def test_missing_or_wrong_feature_tells_what_the_cloud_has() -> None:
    s = sample()
    with pytest.raises(ValueError, match="feature 'rbg': not in the cloud, which has height, intensity, normal, rgb"):
        assemble_features(s.features, s.coords, ["xyz", "rbg"])
    with pytest.raises(ValueError, match="feature 'wide': 2 columns in the cloud, 1 expected"):
        assemble_features({"wide": np.zeros((200, 2))}, s.coords, ["wide"])
    with pytest.raises(ValueError, match="need at least one name and none twice"):
        feature_width(["xyz", "xyz"])


def test_every_height_follows_a_scale_alike():
    from mink_decouple.data.transforms import HEIGHTS

    coords = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    heights = {name: coords[:, 2].copy() for name in HEIGHTS}
    sample = Sample("s", coords, heights, np.full(6, -1), np.arange(6), np.zeros(3))
    scaled = TRANSFORMS["scale"](sample, np.random.default_rng(1), low=1.5, high=1.5)
    for name in HEIGHTS:
        np.testing.assert_allclose(scaled.features[name], 1.5 * coords[:, 2], rtol=1e-6)
