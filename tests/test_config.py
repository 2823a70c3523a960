"""Configuration: layering, conversion, and every error at once."""

import dataclasses

import pytest

from mink_decouple.config import (
    Config,
    ConfigError,
    build,
    configs_dir,
    dump,
    load_config,
    loads,
    merge,
    outweighed,
    parse_overrides,
    replace_data,
    require_free,
)

SHIPPED = sorted([*configs_dir().glob("*.yaml"), *configs_dir().glob("smoke/*.yaml")])
RECIPES = sorted(p.relative_to(configs_dir() / "recipes") for p in (configs_dir() / "recipes").rglob("*.yaml"))


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(configs_dir()).as_posix())
def test_every_shipped_configuration_loads_for_both_backbones(path, backbone):
    assert load_config(path, backbone=backbone).backbone == backbone


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_loads_and_is_recorded_by_name(recipe):
    name = recipe.with_suffix("").as_posix()
    assert load_config(recipe=name).recipe == name


def test_recipes_that_are_the_method_itself_change_nothing():
    base = load_config(recipe="paper")
    for name in ("table5/row3", "table6/gt", "table7/i_step"):
        assert dataclasses.replace(load_config(recipe=name), recipe=base.recipe) == base


def test_the_rows_of_table_5_differ_from_each_other():
    rows = [dataclasses.replace(load_config(recipe=f"table5/row{i}"), recipe="") for i in range(1, 9)]
    assert len({dump(row) for row in rows}) == 8


def test_later_layers_win_and_mappings_merge(tmp_path):
    write(
        tmp_path / "low.yaml",
        "schedule: {iterations: 7, decay: 0.5}\nview: {batch: 2}\nbackbones: {randla: {view: {batch: 9}}}",
    )
    high = write(tmp_path / "high.yaml", "base: low.yaml\nschedule: {iterations: 8}")
    config = load_config(high, overrides=parse_overrides(["schedule.steps=3"]))
    assert (config.schedule.iterations, config.schedule.decay, config.schedule.steps) == (8, 0.5, 3)
    assert config.view.batch == 2
    assert load_config(high, backbone="randla").view.batch == 9


def test_a_recipe_s_section_of_a_backbone_wins_over_the_recipe_and_the_file_but_not_over_the_command_line(tmp_path):
    file = write(tmp_path / "file.yaml", "backbones: {randla: {view: {batch: 5, k: 9}}}")
    low = write(tmp_path / "low.yaml", "view: {batch: 2}\nbackbones: {randla: {view: {batch: 1}}}")
    recipe = write(
        tmp_path / "recipe.yaml", f"base: {low.name}\nview: {{batch: 4}}\nbackbones: {{randla: {{view: {{batch: 3}}}}}}"
    )
    assert load_config(file, recipe=str(recipe)).view.batch == 4
    view = load_config(file, recipe=str(recipe), backbone="randla").view
    assert (view.batch, view.k) == (3, 9)
    assert load_config(file, recipe=str(recipe), backbone="randla", overrides={"view": {"batch": 7}}).view.batch == 7


@pytest.mark.parametrize("where", ["file", "recipe"])
def test_a_file_of_one_s_own_wins_over_its_base_s_section_of_a_backbone(tmp_path, where):
    base = "synthetic.yaml" if where == "file" else "recipes/decoupled.yaml"
    own = write(
        tmp_path / "own.yaml",
        f"base: {configs_dir() / base}\nschedule: {{pretrain: {{epochs: 5}}}}\nlabels: {{spread: none}}",
    )
    given = {"path": own, "recipe": "paper"} if where == "file" else {"recipe": str(own)}
    for backbone in ("minkunet", "randla"):
        config = load_config(**given, backbone=backbone)
        assert (config.schedule.pretrain.epochs, config.labels.spread) == (5, "none")


@pytest.mark.parametrize("where", ["file", "recipe"])
def test_a_section_of_an_unknown_backbone_is_named(tmp_path, where):
    path = write(tmp_path / "c.yaml", "backbones: {rnadla: {view: {batch: 3}}}")
    with pytest.raises(
        ConfigError, match=r"c\.yaml: backbones: unknown backbone 'rnadla' \(nearest: randla\); choices"
    ):
        load_config(path) if where == "file" else load_config(recipe=str(path))


@pytest.mark.parametrize(
    ("recipe", "minkunet", "randla"),
    [
        ("decoupled", "segments", "forest"),
        ("best", "segments", "forest"),
        ("outdoor", "segments", "segments"),
        ("paper", "none", "none"),
        ("forest", "forest", "forest"),
    ],
)
def test_a_forest_spreads_the_labels_of_randla_alone_by_default(recipe, minkunet, randla):
    """As measured (docs/results.md)."""
    assert load_config(recipe=recipe).labels.spread == minkunet
    assert load_config(recipe=recipe, backbone="randla").labels.spread == randla


def test_mink_is_accepted_for_minkunet():
    assert load_config(backbone="mink").backbone == "minkunet"


def test_numbers_that_yaml_reads_as_text_are_converted():
    assert build({"schedule": {"pretrain": {"lr": "1e-3"}}}).schedule.pretrain.lr == 1e-3
    assert load_config(overrides=parse_overrides(["schedule.pretrain.lr=1e-4"])).schedule.pretrain.lr == 1e-4


def test_off_is_text_where_text_is_expected():
    assert load_config(overrides=parse_overrides(["pseudo.uncertain=off"])).pseudo.uncertain == "off"


def test_all_errors_of_a_configuration_come_at_once():
    with pytest.raises(ConfigError) as caught:
        build({"sede": 1, "loss": {"alpha": "much", "form": "softmix"}, "view": {"batch": 0}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any("sede" in line and "nearest: seed" in line for line in lines)
    assert any("loss.alpha" in line and "'much'" in line for line in lines)
    assert any("loss.form" in line and "softmax, ovr" in line for line in lines)
    assert any("view.batch" in line and "between 1 and 511" in line for line in lines)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"seed": True}, "whole number"),
        ({"loss": {"alpha": float("nan")}}, "finite"),
        ({"loss": {"efl_weight": "yes please"}}, "true or false"),
        ({"data": {"features": "rgb"}}, "a list"),
        ({"data": 3}, "a mapping"),
    ],
)
def test_wrong_types_are_named(tree, words):
    with pytest.raises(ConfigError, match=words):
        build(tree)


def test_unknown_names_list_the_choices():
    with pytest.raises(ConfigError, match=r"nearest: randla.*minkunet, randla"):
        load_config(backbone="randlo")
    with pytest.raises(ConfigError, match="supervised"):
        load_config(recipe="superwised")
    with pytest.raises(ConfigError, match="key=value"):
        parse_overrides(["seed"])


def test_a_base_that_leads_back_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml")
    write(tmp_path / "b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match="leads back"):
        load_config(tmp_path / "a.yaml")


def test_files_that_are_missing_or_not_yaml_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write(tmp_path / "bad.yaml", "a: [1"))
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(write(tmp_path / "list.yaml", "- 1"))


def test_the_resolved_file_reads_back_to_the_same_configuration(tmp_path):
    config = load_config(backbone="randla", recipe="table5/row2", overrides={"seed": 4})
    path = write(tmp_path / "config.yaml", dump(config))
    assert load_config(path) == config == loads(dump(config))
    assert load_config(path, overrides={"seed": 5}).seed == 5
    with pytest.raises(ConfigError, match="resolved"):
        load_config(path, backbone="minkunet")


def test_merge_leaves_its_arguments_alone():
    low, high = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(low, high) == {"a": {"b": 1, "c": 2}}
    assert (low, high) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_another_dataset_does_not_change_what_a_trained_network_sees():
    trained = build({"data": {"grid": 0.1, "features": ["xyz"]}})
    asked = build({"data": {"grid": 0.5, "root": "elsewhere"}, "eval": {"votes": 2}})
    both = replace_data(trained, asked)
    assert (both.data.grid, both.data.features, both.data.root, both.eval.votes) == (0.1, ["xyz"], "elsewhere", 2)


def test_what_a_recipe_decides_against_a_file_is_known(tmp_path):
    base = write(tmp_path / "base.yaml", "loss: {s: 5}\npseudo: {within: any}\n")
    file = write(
        tmp_path / "c.yaml",
        "base: base.yaml\nrecipe: outdoor\npseudo: {delta_d: 0.5, votes: 3}\nloss: {seg_norm: split}\n"
        "backbones: {minkunet: {ii: {sampler: natural}}, randla: {labels: {spread: none}}}\n",
    )
    assert base.is_file()
    assert outweighed(file, load_config(file)) == ["pseudo.within", "pseudo.delta_d", "ii.sampler"]
    assert outweighed(file, load_config(file, backbone="randla")) == [
        "pseudo.within",
        "pseudo.delta_d",
        "labels.spread",
    ]
    asked = load_config(file, overrides={"pseudo": {"delta_d": 0.6}})
    assert outweighed(file, asked) == ["pseudo.within", "ii.sampler"]
    mine = str(write(tmp_path / "mine.yaml", "pseudo: {votes: 7}\n"))
    assert outweighed(file, load_config(file, recipe=mine), mine) == ["pseudo.votes"]
    resolved = write(tmp_path / "resolved.yaml", dump(asked))
    assert outweighed(resolved, load_config(resolved)) == []
    assert outweighed(configs_dir() / "synthetic.yaml", load_config()) == []


def test_defaults_are_the_method_of_the_paper():
    c = Config()
    assert (c.pseudo.delta_d, c.pseudo.delta_len, c.pseudo.beta, c.loss.alpha, c.loss.s) == (0.5, 0.1, 0.5, 0.5, 10.0)
    assert (c.schedule.iterations, c.schedule.pretrain.epochs, c.schedule.i_step.epochs, c.schedule.ii_step.epochs) == (
        10,
        100,
        30,
        100,
    )
    assert (c.schedule.pretrain.lr, c.schedule.i_step.lr, c.schedule.decay) == (1e-2, 1e-3, 0.98)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: 5", "base: expected a file"),
        ("backbones: [randla]", "backbones"),
        ("backbones: {randla: 3}", "backbones"),
    ],
)
def test_layers_of_the_wrong_form_are_named(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path / "c.yaml", text))


def test_every_label_and_a_budget_contradict_each_other():
    with pytest.raises(ConfigError, match="drop --labels"):
        load_config(recipe="fully_supervised", overrides={"labels": {"budget": "1pt"}})
    assert load_config(recipe="fully_supervised").labels.budget == "full"


def test_what_a_checkpoint_fixes_cannot_be_set():
    require_free({"data": {"root": "elsewhere"}, "eval": {"votes": 2}})
    with pytest.raises(ConfigError, match=r"view: is fixed[\s\S]*data\.grid: is fixed"):
        require_free({"view": {"batch": 1}, "data": {"grid": 1}})
