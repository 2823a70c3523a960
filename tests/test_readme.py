"""What README and docs promise exists: commands parse, recipes and files are there, links lead somewhere."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mink_decouple.cli import COMMANDS
from mink_decouple.config import load_config, parse_overrides
from mink_decouple.study.grid import expand, read_experiment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
TEXT = re.sub(r"(?m)^    \$ .*$", "", TEXT)  # mistakes, which test_troubleshooting.py types
# what the docs have `init` write
WRITTEN = {
    Path(output or ".") / f"{Path(folder).name}.yaml"
    for folder, output in re.findall(r"tools/init\.py (\S+)(?: --output (\S+))?", TEXT)
}
CALLS = sorted(set(re.findall(r"tools/\w+\.py [^`\n|#]+", TEXT)))


@pytest.mark.parametrize("call", CALLS)
def test_a_command_of_the_docs_parses_and_its_configuration_loads(call):
    script, *arguments = shlex.split(call)
    name = Path(script).stem
    assert (ROOT / script).is_file()
    parser = argparse.ArgumentParser()
    COMMANDS[name][0](parser)
    args = parser.parse_args(arguments)
    if name == "train" and args.config is None:
        load_config(backbone=args.backbone, recipe=args.recipe, overrides=parse_overrides(args.set))
    elif name == "experiment":
        file = ROOT / args.experiment
        expand(read_experiment(file), file, parse_overrides(args.set))
    elif getattr(args, "config", None) is not None and args.config not in WRITTEN:
        load_config(ROOT / args.config)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_site_has_every_page_once():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(node):
        return [node] if isinstance(node, str) else [p for part in node for p in pages(next(iter(part.values())))]

    assert sorted(pages(site["nav"])) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_make_has_the_targets_the_docs_name():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (train|test|lint|minkowski|clean)\b", TEXT)):
        assert f"\n{target}:" in makefile


def test_every_recipe_the_docs_name_is_shipped():
    for name in re.findall(r"--recipe ([\w/]+)", TEXT):
        if name != "NAME":
            load_config(recipe=name)
