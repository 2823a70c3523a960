"""A first configuration: what it says follows from the clouds, it loads, and it trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mink_decouple.cli import main
from mink_decouple.config import BACKBONES, load_config
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.folder import FolderDataset
from mink_decouple.data.io import write_cloud
from mink_decouple.data.proposal import grid_size, propose
from mink_decouple.data.survey import Look, common, look, spacing, survey
from mink_decouple.engine.train import Trainer


def seen(name, labels, points=1000, columns=("intensity",), extent=(50.0, 50.0, 9.0), gap=0.13):
    return Look(Path(name), points, tuple(columns), labels, extent, gap)


def lines(text, word):
    return [line.split("#")[0].strip() for line in text.splitlines() if word in line]


def test_spacing_of_a_lattice_is_its_step_whatever_strays_or_repeats():
    side = np.arange(30, dtype=np.float32) * 0.25
    lattice = np.stack(np.meshgrid(side, side, side[:3]), axis=-1).reshape(-1, 3)
    assert spacing(np.concatenate([lattice, [[900, 900, 900]]]).astype(np.float32)) == pytest.approx(0.25)
    assert spacing(np.repeat(lattice, 2, axis=0)) == pytest.approx(0.25)
    assert spacing(lattice[:1]) == spacing(lattice[[0, 0]]) == 0.0


@pytest.mark.parametrize(
    ("gap", "size"), [(0.13, 0.2), (0.02, 0.03), (0.033, 0.05), (0.67, 1.0), (6.5, 10.0), (0.0, 0.001), (0.058, 0.08)]
)
def test_grid_is_one_and_a_half_spacings_on_a_round_number(gap, size):
    assert grid_size(gap) == pytest.approx(size)


def test_las_ids_get_the_names_of_the_specification_and_noise_is_ignored():
    looks = [seen(f"{n}.las", {0: 5, 2: 500, 6: 300, 7: 20, 17: 4}) for n in "abc"]
    made = propose(looks, "tiles", "c.yaml")
    assert [line.split(":")[0] for line in lines(made.classes, "raw: [")] == ["ground", "building", "bridge"]
    assert "ignore: [0, 7]" in made.classes
    assert any("7 (noise)" in note for note in made.notes) and not any("put them in" in note for note in made.notes)
    text = propose([seen(f"{n}.ply", {0: 5, 7: 20}) for n in "ab"], "t", "c.yaml")
    assert [line.split(":")[0] for line in lines(text.classes, "raw: [")] == ["class_0", "class_7"]
    assert any("put them in" in note for note in text.notes)


def test_every_class_stays_in_the_training_files():
    rng = np.random.default_rng(0)
    for _ in range(30):
        looks = [
            seen(f"{n}.ply", {int(raw): 10 for raw in rng.choice(6, rng.integers(2, 6), replace=False)})
            for n in range(int(rng.integers(4, 12)))
        ]
        made = propose(looks, "t", "c.yaml")
        kept = {int(line.split("[")[1].split("]")[0]) for line in lines(made.classes, "raw: [")}
        train = lines(made.config, "train: [")[0]
        in_train = set().union(*(look.labels for look in looks if f"'{look.path.stem}'" in train))
        assert kept <= in_train
        everywhere = {raw for raw in range(6) if sum(raw in look.labels for look in looks) >= 2}
        assert kept <= everywhere


def test_features_are_the_columns_that_every_file_has():
    both = [seen("a.las", {2: 9, 6: 9}, columns=("intensity", "rgb")), seen("b.las", {2: 9, 6: 9}, columns=("rgb",))]
    outdoors = propose(both, "t", "c.yaml").config
    assert "features: [rgb, height, height_wide]" in outdoors and "\nrecipe: outdoor\n" in outdoors
    indoors = [seen(f"{n}.ply", {1: 9, 2: 9}, columns=("rgb",), extent=(6, 5, 3)) for n in "ab"]
    text = propose(indoors, "t", "c.yaml").config
    assert "features: [rgb, height]" in text and "height: floor" in text and "shape: sphere" in text
    assert "\nrecipe: decoupled\n" in text
    assert "crop_points: 24000" in propose([seen(f"{n}.las", {2: 9, 6: 9}, 900_000) for n in "ab"], "t", "c").config


def test_columns_that_hold_one_value_in_every_file_are_no_features():
    rng = np.random.default_rng(0)
    xyz = rng.uniform(0, 60, (50, 3)).astype(np.float32)
    hole = np.where(np.arange(50) < 9, np.nan, 7.0).astype(np.float32)
    varying = rng.uniform(1, 9, 50).astype(np.float32)
    kinds = ({"rgb": np.zeros((50, 3), np.float32), "intensity": hole, "remission": hole}, {"remission": varying})
    clouds = [PointCloud("a", xyz, features={**kinds[0], **more}, labels=np.arange(50) % 2) for more in ({}, kinds[1])]
    looks = [look(Path(f"{name}.ply"), cloud) for name, cloud in zip("ab", clouds)]
    assert common(looks) == ("remission",)
    made = propose(looks, "t", "c.yaml").config
    assert "features: [height, height_wide, remission]" in made and "colour" not in made


def test_few_labelled_points_outdoors_are_better_spread_by_a_forest():
    def said(count, extent=(50.0, 50.0, 9.0)):
        looks = [seen(f"{name}.las", {2: count, 6: count}, 2 * count, extent=extent) for name in "abc"]
        return [note for note in propose(looks, "t", "c.yaml").notes if "--recipe forest" in note]

    assert said(9_950) == ["few labels (396 points): try --recipe forest (docs/results.md)"]  # two files, 99 a class
    assert not said(12_500) and not said(9_950, (6.0, 5.0, 3.0))  # 500; a room
    sparse = propose([seen(f"{name}.las", {0: 8985, 2: 8, 6: 7}, 9000) for name in "abc"], "t", "c.yaml")
    assert "few labels (30 points): try --recipe forest (docs/results.md)" in sparse.notes


def test_a_single_labelled_file_is_trained_and_scored_on_and_the_others_predicted():
    made = propose([seen("a.las", {2: 900, 6: 100}), seen("b.las", None)], "t", "c.yaml")
    assert lines(made.config, "train: [") == ["train: ['a']"]
    assert lines(made.config, "eval_split") == ["eval_split: train"]
    assert "val:" not in made.config
    assert any("scores say nothing of other scenes" in note for note in made.notes)
    assert "no labels, or only ids that stand for none, in b.las: in no split, predict them" in made.notes


@pytest.mark.parametrize("nothing", [{1: 900}, {0: 400, 1: 500}, {-1: 900}])
def test_files_of_ids_that_stand_for_none_have_no_labels(nothing):
    """LAS 1 is what vendors write before anything is classified."""
    alone = propose([seen("a.las", {2: 900, 6: 100}), seen("b.las", nothing)], "t", "c.yaml")
    assert {"ground", "building"} <= set(yaml.safe_load(alone.classes)["classes"])
    assert set(nothing) <= set(yaml.safe_load(alone.classes)["ignore"])
    looks = [seen("a.las", {2: 900, 6: 100}), seen("b.las", nothing, 900_000), seen("c.las", {2: 900, 6: 100})]
    made = propose(looks, "t", "c.yaml")
    assert 'budget: "1%"' in made.config
    assert any("only ids that stand for none, in b.las" in note for note in made.notes)


def test_unlabelled_files_are_trained_on_beside_labelled_ones():
    made = propose([seen("a.las", {2: 9, 6: 9}), seen("b.las", None), seen("c.las", {2: 9, 6: 9})], "t", "c.yaml")
    assert lines(made.config, "train: [")[0] in ("train: ['a', 'b']", "train: ['c', 'b']")


def test_what_looks_wrong_is_said():
    labelled = [seen("a.ply", {1: 9, 2: 9}, gap=13.0), seen("b.ply", {1: 9, 2: 9}, gap=130.0)]
    looks = [*labelled, seen("c.ply", None, gap=13.0)]
    notes = " | ".join(propose(looks, "t", "c.yaml").notes)
    assert "spacing differs from 13 to 130" in notes and "are the coordinates metres?" in notes
    assert (
        "no labels, or only ids that stand for none, in c.ply: in train, for pseudo-labels; list fewer to save time"
        in notes
    )
    rare = propose([seen(f"{n}.las", {2: 5, 64: 1}, 100_000) for n in "ab"], "t", "c.yaml").notes
    assert any("very rare: ground 0.01%, class_64 0.00%" in note for note in rare)


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([seen("a.las", None), seen("b.las", None)], "t: none of 2 files has labels; at least one is needed"),
        ([seen("a.las", {2: 9}), seen("b.las", {2: 9})], "1 class in the labels"),
        ([seen("a.las", {2: 9})], "1 class in the labels"),
    ],
)
def test_too_little_to_train_on_is_refused(looks, said):
    with pytest.raises(ValueError, match=said):
        propose(looks, "t", "c.yaml")


@pytest.fixture
def clouds(tmp_path):
    """Four rooms of a floor, a wall and a box, as LAS and PLY."""
    rng = np.random.default_rng(0)
    for number in range(4):
        xyz = rng.uniform(0, 3, (600, 3)).astype(np.float32)
        label = np.repeat([2, 6, 17], 200)
        xyz[:200, 2] = xyz[200:400, 1] = 0
        features = {"intensity": rng.uniform(0, 900, 600).astype(np.float32)}
        write_cloud(
            tmp_path / "clouds" / f"00{number}{'.las' if number % 2 else '.ply'}",
            PointCloud("room", xyz, features=features, labels=label),
        )
    return tmp_path / "clouds"


def test_init_writes_what_loads_checks_and_trains(clouds, tmp_path, capsys):
    assert main(["init", str(clouds), "--output", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    config = tmp_path / "mine" / "clouds.yaml"
    assert f"train --config {config}" in said and "000.ply" in said
    for backbone in BACKBONES:
        loaded = load_config(config, backbone=backbone)
        assert loaded.recipe == "decoupled" and loaded.data.features == ["height", "log_intensity"]
    dataset = FolderDataset(clouds, loaded.data.classes, loaded.data.splits)
    assert len(dataset.scenes("train")) == 3 and len(dataset.scenes("val")) == 1
    assert main(["check", "--config", str(config)]) == 0
    short = {"schedule": {"steps": 1, "pretrain": {"epochs": 1}, "i_step": {"epochs": 1}, "ii_step": {"epochs": 1}}}
    config_short = load_config(config, backbone="minkunet", overrides={**short, "eval": {"votes": 1}})
    metrics = Trainer(config_short, tmp_path / "run", torch.device("cpu")).run().metrics
    assert 0 <= metrics["miou"] <= 1
    capsys.readouterr()
    assert main(["init", str(clouds), "--output", str(tmp_path / "mine")]) == 2
    assert "clouds.yaml: exists; choose another --output or --name" in capsys.readouterr().err


def test_init_on_one_tile_writes_what_checks_and_trains(clouds, tmp_path, capsys):
    for path in clouds.glob("00[123]*"):
        path.unlink()
    assert main(["init", str(clouds), "--output", str(tmp_path / "mine")]) == 0
    config = tmp_path / "mine" / "clouds.yaml"
    assert main(["check", "--config", str(config)]) == 0
    short = {"schedule": {"steps": 1, "iterations": 0, "pretrain": {"epochs": 1}}, "eval": {"votes": 1}}
    loaded = load_config(config, backbone="minkunet", overrides=short)
    assert 0 <= Trainer(loaded, tmp_path / "run", torch.device("cpu")).run().metrics["miou"] <= 1


def test_init_writes_both_files_or_none(clouds, tmp_path, monkeypatch):
    from mink_decouple.engine import runtime

    original = runtime.write_text

    def full(path, text):
        if path.name == "clouds.yaml":
            raise OSError(28, "No space left on device", str(path))
        original(path, text)

    monkeypatch.setattr(runtime, "write_text", full)
    assert main(["init", str(clouds), "--output", str(tmp_path / "mine")]) == 2
    assert not list((tmp_path / "mine").iterdir())
    monkeypatch.undo()
    assert main(["init", str(clouds), "--output", str(tmp_path / "mine")]) == 0


def test_folders_without_clouds_are_named_with_what_is_in_them(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for folder, said in ((tmp_path, "its sub-folders sub are not looked into"), (tmp_path / "gone", "no such folder")):
        assert main(["init", str(folder), "--output", str(tmp_path / "mine")]) == 2
        assert said in capsys.readouterr().err
    np.savetxt(tmp_path / "a.txt", np.zeros((5, 5)))
    assert main(["init", str(tmp_path), "--output", str(tmp_path / "mine")]) == 2
    assert "5 columns without names" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_real_tiles_get_the_split_and_features_of_their_shipped_configuration():
    root = Path(__file__).parents[2].parent / "shared" / "data" / "lidar_hd_dense"
    if not root.is_dir():
        pytest.skip("the sample tiles are not here")
    made = propose(survey(root), root.as_posix(), "c.yaml")
    shipped = load_config(Path(__file__).parents[2] / "configs" / "lidar_hd_dense.yaml")
    for name in shipped.data.splits["val"]:
        assert f"'{name}'" in lines(made.config, "val: [")[0]
    for name in ("height", "height_wide", "log_intensity", "return_number", "number_of_returns"):
        assert name in lines(made.config, "features:")[0]


def test_few_labelled_points_are_all_used_and_a_fully_labelled_file_is_scored():
    sparse = [seen(f"{name}.ply", {-1: 8985, 0: 8, 1: 7}, 9000) for name in "ab"]
    proposal = propose([*sparse, seen("c.ply", {0: 5000, 1: 4500}, 9500)], "clouds", "classes.yaml")
    assert lines(proposal.config, "budget") == ['labels: {budget: "full", unit: raw}']
    assert lines(proposal.config, "val:") == ["val: ['c']"]
    assert "30 of 18,000 points to train on have a label: all are used (labels.budget full)" in proposal.notes
    assert not any("scores will be" in note for note in proposal.notes)


def test_where_every_file_is_sparsely_labelled_it_is_said_what_scores_are_of():
    proposal = propose([seen(f"{name}.ply", {-1: 8985, 0: 8, 1: 7}, 9000) for name in "abc"], "clouds", "classes.yaml")
    assert any("scores will be of 15 labelled points" in note for note in proposal.notes)


def test_labels_of_most_points_are_drawn_from():
    proposal = propose([seen(f"{name}.ply", {-1: 5000, 0: 2000, 1: 2000}, 9000) for name in "abc"], "clouds", "c.yaml")
    assert lines(proposal.config, "budget") == ['labels: {budget: "1%", unit: raw}']
    assert any("labels.budget 1% uses a hundredth of the labels" in note for note in proposal.notes)


@pytest.mark.parametrize(("suffix", "none"), [("ply", 0), ("las", 0), ("las", 1)])
def test_an_id_of_nearly_all_points_is_no_class_and_the_few_others_are_all_used(suffix, none):
    looks = [seen(f"{name}.{suffix}", {none: 8985, 2: 8, 6: 7}, 9000) for name in "ab"]
    looks.append(seen(f"c.{suffix}", {2: 5000, 6: 4000}, 9000))
    made = propose(looks, "clouds", "classes.yaml")
    assert f"ignore: [{none}]" in made.classes and len(lines(made.classes, "raw: [")) == 2
    assert lines(made.config, "budget") == ['labels: {budget: "full", unit: raw}']
    assert lines(made.config, "val:") == ["val: ['c']"]
    if (suffix, none) != ("las", 0):  # "never classified" whatever its share
        why = f"{none} (nearly all points: taken for 'no label'; give it a class if it is one)"
        assert f"ignored ids: {why}" in made.notes and f"#   {none}: nearly all points" in made.classes


@pytest.mark.parametrize(
    ("suffix", "labels"),
    [("ply", {0: 8500, 1: 300, 2: 200}), ("ply", {0: 8985, 1: 15}), ("ply", {1: 8985, 2: 8, 3: 7})],
)
def test_an_id_of_many_points_stays_a_class(suffix, labels):
    made = propose([seen(f"{name}.{suffix}", labels, 9000) for name in "ab"], "clouds", "classes.yaml")
    assert len(lines(made.classes, "raw: [")) == len(labels) and "ignore: []" in made.classes
