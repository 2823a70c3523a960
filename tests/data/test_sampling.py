import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from mink_decouple.data.sampling import (
    CropSampler,
    SampleIndex,
    SceneSampler,
    coverage,
    epoch_steps,
    nearest,
    visit_weight,
)


def scene(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, [20, 10, 3], (count, 3)).astype(np.float32)


def scenes() -> dict[str, np.ndarray]:
    return {"small": scene(0, 80), "middle": scene(1, 700), "large": scene(2, 3000)}


def same(a: SampleIndex, b: SampleIndex) -> bool:
    return a.scene == b.scene and a.points.tobytes() == b.points.tobytes() and a.center.tobytes() == b.center.tobytes()


@given(seed=st.integers(0, 10**6), size=st.integers(1, 9000), share=st.floats(0.001, 1), column=st.booleans())
@settings(max_examples=40, deadline=None)
def test_nearest_equals_a_kd_tree(seed: int, size: int, share: float, column: bool) -> None:
    coords = scene(seed, size)
    count = max(1, int(size * share))
    center = coords[seed % size].astype(np.float64)
    points, squared = nearest(coords, center, count, "column" if column else "sphere")
    axes = 2 if column else 3
    distance, _ = cKDTree(coords[:, :axes]).query(center[:axes], k=[*range(1, count + 1)])
    assert len(points) == count and (np.diff(points) > 0).all()
    np.testing.assert_allclose(np.sort(squared), distance**2, rtol=1e-4, atol=1e-6)


def test_nearest_copes_with_equal_distances() -> None:
    points, _ = nearest(np.zeros((9000, 3), np.float32), np.zeros(3), 100)
    assert len(np.unique(points)) == 100


def test_visit_weight_falls_from_one_to_zero() -> None:
    np.testing.assert_allclose(visit_weight(np.array([0, 1, 2], np.float32)), [1, 0.25, 0])
    np.testing.assert_allclose(visit_weight(np.zeros(2, np.float32)), [1, 1])


def test_epoch_steps_counts_whole_crops_per_scene() -> None:
    assert epoch_steps([80, 700, 100], 100) == 1 + 7 + 1


@pytest.mark.parametrize("shape", ["sphere", "column"])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_coverage_holds_every_point_and_repeats_itself(shape: str, overlap: float) -> None:
    coords = scene(5, 3000)
    crops = coverage("a", coords, 250, shape=shape, overlap=overlap)
    assert len(np.unique(np.concatenate([crop.points for crop in crops]))) == 3000
    assert all(len(crop.points) == 250 for crop in crops)
    assert 12 <= len(crops) < (60 if overlap == 0 else 200)
    again = coverage("a", coords, 250, shape=shape, overlap=overlap)
    assert all(same(a, b) for a, b in zip(crops, again, strict=True))


def test_more_overlap_means_more_crops_and_generators_differ() -> None:
    coords = scene(5, 2000)
    assert len(coverage("a", coords, 200, overlap=0.5)) > len(coverage("a", coords, 200))
    first, second = (coverage("a", coords, 200, rng=np.random.default_rng(i)) for i in range(2))
    assert not same(first[0], second[0])


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_coverage_ends_where_more_points_than_a_crop_holds_share_one_place(overlap: float) -> None:
    shaft = np.zeros((40, 3), np.float32)
    shaft[:, 2] = np.arange(40)
    coords = np.concatenate([shaft, np.arange(1, 31, dtype=np.float32).reshape(10, 3)])
    crops = coverage("a", coords, 15, shape="column", overlap=overlap)
    assert len(crops) < 12 and all(len(np.unique(crop.points)) == 15 for crop in crops)
    assert np.array_equal(np.unique(np.concatenate([crop.points for crop in crops])), np.arange(50))


def test_coverage_takes_a_small_scene_whole() -> None:
    (crop,) = coverage("a", scene(0, 100), 100)
    assert crop.points.tolist() == list(range(100))
    assert coverage("a", np.empty((0, 3), np.float32), 100) == []


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_crops_visit_every_point_of_every_scene(noise: float) -> None:
    coords = scenes()
    sampler, rng = CropSampler(coords, 200, noise=noise), np.random.default_rng(0)
    seen = {name: np.zeros(len(points), int) for name, points in coords.items()}
    for _ in range(5 * epoch_steps(map(len, coords.values()), 200)):
        drawn = sampler.next(rng)
        seen[drawn.scene][drawn.points] += 1
    assert all(visits.min() >= 1 for visits in seen.values())


def test_scenes_of_all_sizes_are_visited_evenly_per_point() -> None:
    coords = scenes()
    sampler, rng = CropSampler(coords, 200), np.random.default_rng(0)
    visits = dict.fromkeys(coords, 0.0)
    for _ in range(40 * epoch_steps(map(len, coords.values()), 200)):
        drawn = sampler.next(rng)
        visits[drawn.scene] += len(drawn.points) / len(coords[drawn.scene])
    assert max(visits.values()) < 1.5 * min(visits.values())


def test_a_scene_that_fits_is_taken_whole() -> None:
    coords = scenes()
    sampler, rng = CropSampler(coords, 200), np.random.default_rng(0)
    drawn = [sampler.next(rng) for _ in range(30)]
    whole = [d for d in drawn if d.scene == "small"]
    assert whole and all(len(d.points) == 80 for d in whole)
    assert all(len(d.points) == 200 for d in drawn if d.scene != "small")


def test_resumed_stream_equals_the_uninterrupted_one() -> None:
    coords = scenes()
    visible = {name: np.where(np.arange(len(c)) % 50 == 0, 1, -1) for name, c in coords.items()}

    def make() -> CropSampler:
        return CropSampler(coords, 150, noise=0.2, label_centred=0.5, visible=visible, seed=3)

    sampler, rng = make(), np.random.default_rng(9)
    for _ in range(11):
        sampler.next(rng)
    state, place = sampler.state_dict(), rng.bit_generator.state
    expected = [sampler.next(rng) for _ in range(20)]
    resumed, rng = make(), np.random.default_rng()
    resumed.load_state_dict(state)
    rng.bit_generator.state = place
    assert all(same(resumed.next(rng), e) for e in expected)


def test_label_centred_draws_are_uniform_over_classes() -> None:
    coords = scenes()
    visible = {name: np.full(len(c), -1) for name, c in coords.items()}
    visible["large"][:300] = 0
    visible["large"][300] = 1
    visible["middle"][7] = 2
    sampler = CropSampler(coords, 100, label_centred=1.0, visible=visible)
    rng = np.random.default_rng(0)
    drawn = [sampler.next(rng) for _ in range(900)]
    middle = [d for d in drawn if d.scene == "middle"]
    rare = [d for d in drawn if d.scene == "large" and np.array_equal(d.center, coords["large"][300].astype(float))]
    assert 240 < len(middle) < 360 and 240 < len(rare) < 360
    assert all(7 in d.points for d in middle)
    assert all((visible[d.scene][d.points] >= 0).any() for d in drawn)


def test_other_scenes_do_not_change_a_scenes_first_possibilities() -> None:
    alone = CropSampler({"large": scene(2, 3000)}, 100)
    together = CropSampler(scenes(), 100)
    first = alone.next(np.random.default_rng(0))
    rng = np.random.default_rng(0)
    assert any(same(first, together.next(rng)) for _ in range(3))


def test_no_scene_is_loaded_before_it_is_drawn() -> None:
    class Lazy(dict):
        loaded: list[str] = []  # noqa: RUF012 - one instance only

        def __getitem__(self, name: str) -> np.ndarray:
            self.loaded.append(name)
            return super().__getitem__(name)

    lazy = Lazy(scenes())
    sampler = CropSampler(lazy, 100)
    assert lazy.loaded == []
    drawn = sampler.next(np.random.default_rng(0))
    assert lazy.loaded == [drawn.scene]


def test_scene_sampler_gives_every_scene_once_per_round_and_resumes() -> None:
    sampler, rng = SceneSampler(scenes()), np.random.default_rng(0)
    assert sorted(sampler.next(rng).scene for _ in range(3)) == ["large", "middle", "small"]
    sampler.next(rng)
    state, place = sampler.state_dict(), rng.bit_generator.state
    expected = [sampler.next(rng).scene for _ in range(6)]
    resumed, rng = SceneSampler(scenes()), np.random.default_rng()
    resumed.load_state_dict(state)
    rng.bit_generator.state = place
    assert [resumed.next(rng).scene for _ in range(6)] == expected


def test_bad_options_are_refused_by_name() -> None:
    coords = scenes()
    for options, message in [
        ({"shape": "cube"}, "shape: 'cube'; choose one of sphere, column"),
        ({"noise": -1}, "noise: -1"),
        ({"label_centred": 2}, "label_centred: 2"),
        ({"label_centred": 0.5}, "no scene has a visible label"),
        ({"names": []}, "no scene"),
    ]:
        with pytest.raises(ValueError, match=message):
            CropSampler(coords, 100, **options)
    with pytest.raises(ValueError, match="crop_points: 0"):
        CropSampler(coords, 0)


def test_state_of_another_split_is_refused() -> None:
    sampler = CropSampler(scenes(), 100)
    with pytest.raises(ValueError, match="scene 'elsewhere' is not among"):
        sampler.load_state_dict({"possibility": {"elsewhere": np.zeros(3)}})
    sampler.load_state_dict({"possibility": {"small": np.zeros(3)}})
    with pytest.raises(ValueError, match="small: the saved sampler state has 3 points, the scene 80"):
        for _ in range(3):
            sampler.next(np.random.default_rng(0))
