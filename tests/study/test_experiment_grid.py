"""The file of an experiment: expansion, settings of each run, errors; every shipped one is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from mink_decouple.config import configs_dir, digest, load_config, parse_overrides
from mink_decouple.study.grid import expand, nested, read_experiment
from mink_decouple.typed import ConfigError

SHIPPED = sorted((configs_dir() / "experiments").glob("*.yaml"))


def cells(folder: Path, text: str, **overrides: object) -> list:
    file = folder / "grid.yaml"
    file.write_text(text, encoding="utf-8")
    return expand(read_experiment(file), file, overrides)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_experiment_is_valid(file):
    experiment = read_experiment(file)
    found = expand(experiment, file)
    assert len({cell.name for cell in found}) == len(found) > 0
    assert {cell.config.seed for cell in found} == {0, 1, 2}
    assert experiment.title and experiment.reference in {cell.title for cell in found}


def test_the_grid_is_the_product_seed_by_seed(tmp_path):
    found = cells(tmp_path, "recipes: [supervised, table5/row2]\nlabels: [1pt, 1%]\nseeds: [3, 5]\n")
    assert len(found) == 2 * 2 * 2 * 2
    assert [cell.config.seed for cell in found] == [3] * 8 + [5] * 8
    assert {cell.group for cell in found} == {
        (backbone, budget, recipe)
        for backbone in ("minkunet", "randla")
        for budget in ("1pt", "1%")
        for recipe in ("supervised", "table5/row2")
    }


def test_a_cell_is_what_the_command_line_would_train(tmp_path):
    (cell,) = cells(tmp_path, "backbones: [randla]\nrecipes: [table5/row2]\nseeds: [4]\n")
    assert cell.config == load_config(
        backbone="randla", recipe="table5/row2", overrides={"seed": 4, "labels": {"budget": "1pt"}}
    )


def test_settings_win_in_the_order_file_backbone_entry_command(tmp_path):
    text = """
seeds: [0]
recipes: [decoupled, {title: own, set: {pseudo.beta: 0.3}}]
set: {pseudo.beta: 0.1, pseudo.floor: 0.1, loss: {s: 8}}
backbone_set: {randla: {pseudo.beta: 0.2}}
"""
    found = {cell.group[0::2]: cell.config for cell in cells(tmp_path, text, loss={"alpha": 0.25})}
    betas = {key: config.pseudo.beta for key, config in found.items()}
    assert betas == {
        ("minkunet", "decoupled"): 0.1,
        ("randla", "decoupled"): 0.2,
        ("minkunet", "own"): 0.3,
        ("randla", "own"): 0.3,
    }
    assert {config.pseudo.floor for config in found.values()} == {0.1}
    assert {(config.loss.s, config.loss.alpha) for config in found.values()} == {(8.0, 0.25)}
    assert found["randla", "own"].recipe == "own"


def test_a_recipe_for_one_budget_runs_once(tmp_path):
    found = cells(
        tmp_path, "backbones: [minkunet]\nrecipes: [fully_supervised, supervised]\nlabels: [1pt, 1%]\nseeds: [0]\n"
    )
    assert [cell.group[1:] for cell in found] == [
        ("full", "fully_supervised"),
        ("1pt", "supervised"),
        ("1%", "supervised"),
    ]


def test_the_data_is_found_beside_the_file(tmp_path):
    (tmp_path / "data.yaml").write_text("data: {grid: 0.07}\n", encoding="utf-8")
    (cell,) = cells(tmp_path, "config: data.yaml\nbackbones: [minkunet]\nrecipes: [supervised]\nseeds: [0]\n")
    assert cell.config.data.grid == 0.07


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipes: [supervised]\nsedes: [1]\n", "sedes: unknown key (nearest: seeds)"),
        ("recipes: []\n", "recipes: empty"),
        ("recipes: [supervised]\nseeds: []\n", "seeds: empty"),
        ("recipes: [supervised]\nseeds: [1, 1]\n", "seeds: 1 stands there twice"),
        ("recipes: [supervised, supervised]\n", "two are called 'supervised'"),
        ("recipes: [supervised]\nbackbones: [rnadla]\n", "unknown value 'rnadla' (nearest: randla)"),
        ("recipes: [supervised]\nreference: decopled\n", "unknown title 'decopled'"),
        ("recipes: [{recpe: supervised}]\n", "recipes.0.recpe: unknown key (nearest: recipe)"),
        ("recipes: [tabel5/row1]\n", "recipe 'tabel5/row1': unknown (nearest: table5/row1)"),
        ("recipes: [supervised]\nset: {loss.gama: 1}\n", "loss.gama: unknown key (nearest: gamma)"),
        ("recipes: [supervised]\nset: {seed: 3}\n", "set: seed is a key of the experiment itself: seeds"),
        ("recipes: [fully_supervised]\nset: {labels.budget: 1pt}\n", "set: labels.budget is a key of the experiment"),
        (
            "recipes: [supervised]\nbackbone_set: {randla: {labels: {budget: 1pt}}}\n",
            "backbone_set.randla: labels.budget is",
        ),
        ("recipes: [{recipe: supervised, set: {labels.budget: 5pt}}]\n", "recipes.0.set: labels.budget is a key"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        cells(tmp_path, text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "own"),
    [
        ("seed=9", "seeds"),
        ("labels.budget=5pt", "labels"),
        ("recipe=supervised", "recipes"),
        ("backbone=randla", "back"),
    ],
)
def test_what_the_grid_decides_cannot_be_set_beside_it(tmp_path, setting, own):
    """It was replaced without a word, or gave rows a false title."""
    file = tmp_path / "grid.yaml"
    file.write_text("recipes: [supervised]\n", encoding="utf-8")
    key = setting.split("=")[0]
    with pytest.raises(ConfigError, match=f"^--set {key} is a key of the experiment itself: {own}"):
        expand(read_experiment(file), file, parse_overrides([setting]))
    assert len(expand(read_experiment(file), file, parse_overrides(["labels.unit=raw"]))) == 6


def test_every_mistake_is_named_at_once_and_only_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        cells(tmp_path, "recipes: [supervised, decoupled]\nset: {loss.gama: 1, view.bach: 2}\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(set(lines)) == 4  # two settings, in two entries


def test_dotted_keys_and_mappings_are_the_same():
    assert nested({"a.b": 1, "a": {"c": {"d.e": 2}}}) == {"a": {"b": 1, "c": {"d": {"e": 2}}}}


def test_equal_settings_have_equal_digests_whatever_name_seed_and_engine():
    first = load_config(recipe="paper")
    same = (
        load_config(recipe="table5/row3", overrides={"seed": 7}),
        load_config(recipe="paper", overrides={"model": {"engine": "native"}}),
    )
    assert {digest(config) for config in same} == {digest(first)}
    others = (
        load_config(recipe="table5/row2"),
        load_config(overrides={"labels": {"budget": "1%"}}),
        load_config(overrides={"augment": {"flip": None}}),
        load_config(backbone="randla"),
    )
    assert len({digest(config) for config in (first, *others)}) == 5
