"""Raw ids map to train ids and back; classes.yaml keeps everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.classes import (
    S3DIS,
    Classes,
    classes_from_mapping,
    default_palette,
    load_classes,
    save_classes,
)


def _aerial() -> Classes:
    return Classes(
        names=("ground", "vegetation", "building"),
        colors=default_palette(3),
        raw_ids={2: 0, 5: 1, 3: 1, 6: 2},
        ignored=frozenset({0, 65}),
    )


def test_encode_maps_shared_and_ignored_ids() -> None:
    train = _aerial().encode(np.array([[2, 3, 5], [6, 0, 65]], dtype=np.uint8))
    assert train.dtype == np.int64
    np.testing.assert_array_equal(train, [[0, 1, 1], [2, -1, -1]])


def test_decode_gives_first_raw_id_and_smallest_ignored() -> None:
    np.testing.assert_array_equal(_aerial().decode(np.array([0, 1, 2, -1])), [2, 5, 6, 0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 2), max_size=30))
def test_encode_undoes_decode(train: list[int]) -> None:
    classes = _aerial()
    np.testing.assert_array_equal(classes.encode(classes.decode(np.array(train, dtype=np.int64))), train)


def test_unknown_raw_id_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"raw id 7, 99 \(3 points\) .*\[2, 3, 5, 6\].*ignored \[0, 65\]"):
        _aerial().encode(np.array([2, 99, 7, 99]))


def test_decode_refuses_ids_outside_the_classes() -> None:
    with pytest.raises(ValueError, match=r"-1\.\.2, found 0\.\.3"):
        _aerial().decode(np.array([0, 3]))
    whole = Classes(("a",), default_palette(1), {4: 0})
    with pytest.raises(ValueError, match="ignore none"):
        whole.decode(np.array([0, -1]))


def test_s3dis_has_the_order_of_randlanet() -> None:
    expected = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"
    assert S3DIS.names == tuple(expected.split())
    assert len(S3DIS) == 13
    np.testing.assert_array_equal(S3DIS.colors[8], [255, 0, 0])
    np.testing.assert_array_equal(S3DIS.encode(np.arange(-1, 13)), np.arange(-1, 13))


def test_default_palette_is_distinct_and_prefix_stable() -> None:
    long = default_palette(60)
    assert len(np.unique(long, axis=0)) == 60
    np.testing.assert_array_equal(default_palette(7), long[:7])


def test_yaml_round_trip_keeps_order_ids_and_colours(tmp_path: Path) -> None:
    for classes in (_aerial(), S3DIS, Classes(("on", "1: x"), default_palette(2), {300: 0, -4: 1})):
        save_classes(tmp_path / "classes.yaml", classes)
        again = load_classes(tmp_path / "classes.yaml")
        assert (again.names, again.raw_ids, again.ignored) == (classes.names, classes.raw_ids, classes.ignored)
        np.testing.assert_array_equal(again.colors, classes.colors)
        train = np.arange(len(classes))
        np.testing.assert_array_equal(again.decode(train), classes.decode(train))
    assert [path.name for path in tmp_path.iterdir()] == ["classes.yaml"]


def test_plain_list_of_names_stands_for_raw_ids_from_zero() -> None:
    assert classes_from_mapping({"classes": ["floor", "wall"]}, "c").raw_ids == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs a key 'classes'"),
        ([1], "needs a key 'classes'"),
        ({"classes": "ground"}, "must map names"),
        ({"classes": {"a": [2]}}, "class 'a' must be"),
        ({"classes": {"a": {"raw": [1], "colour": 2}}}, "class 'a' must be"),
        ({"classes": {"a": {"raw": ["x"]}}}, "raw of class 'a' must be whole numbers"),
        ({"classes": {"a": {"raw": []}}}, "no raw id for"),
        ({"classes": {True: {"raw": [1]}}}, "True is not text"),
        ({"classes": {"a": {"raw": [1]}, "b": {"raw": [1]}}}, "raw id 1 is listed twice"),
        ({"classes": {"a": {"raw": [1], "color": [1, 2]}}}, "color of class 'a'"),
        ({"classes": {"a": {"raw": [1], "color": [1, 2, 256]}}}, "color of class 'a'"),
        ({"classes": {"a": {"raw": [1]}}, "ignore": [1]}, "both ignored"),
        ({"classes": ["a", "a"]}, "class 'a' is listed twice"),
        ({"classes": [{"a": 1}]}, "must hold names"),
    ],
)
def test_wrong_yaml_is_one_line_naming_the_file(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        classes_from_mapping(content, "my/classes.yaml")
    assert str(caught.value).startswith("my/classes.yaml: ")


def test_yaml_syntax_error_is_one_line_and_missing_file_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text("classes: {a: [1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a YAML file") as caught:
        load_classes(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        load_classes(tmp_path / "absent.yaml")
    path.write_text("classes: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a YAML file"):
        load_classes(path)
