"""The layers of docs/architecture.md and the rules every source file keeps, read from the syntax trees."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mink_decouple"
MODULES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
SOURCES = MODULES + TOOLS + sorted((ROOT / "benchmarks").rglob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))

# The same rows as docs/architecture.md, in the same words.
LAYERS = """
| `config`, `metrics`, `sparse`, `decouple` | nothing |
| `data` | `config` (types) |
| `models` | `sparse` |
| `engine` | all of the above |
| `report` | `data.cloud`, `data.classes`, `data.io`, `metrics` |
| `study` | `config`, `report` |
| `cli`, `options`, `present`, `describe`, `tools` | anything; nobody imports them |
"""
# Refused when the package is imported without optional packages. Kernels are defined with Triton's decorator, so the
# module that tries to import it does so at its top.
TRITON = "triton"
OPTIONAL = {
    "open3d",
    "laspy",
    "lazrs",
    "plotly",
    "MinkowskiEngine",
    "spconv",
    "matplotlib",
    "pypcd4",
    "plyfile",
    "sklearn",
}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}


def parse_layers(table: str) -> dict[str, set[str] | None]:
    """Layer -> modules it may import beside its own; None: anything."""
    layers: dict[str, set[str] | None] = {}
    for row in table.strip().splitlines():
        left, right = (cell.strip() for cell in row.strip("|").split("|"))
        names = left.replace(",", " ").split()
        allowed: set[str] | None
        if right.startswith("nothing"):
            allowed = set()
        elif right.startswith("all of the above"):
            allowed = set(layers)
        elif right.startswith("anything"):
            allowed = None
        else:
            allowed = {part for i, part in enumerate(right.split("`")) if i % 2}
        layers.update({name.strip("`"): allowed for name in names})
    return layers


ALLOWED = parse_layers(LAYERS)
# A layer that is one module may be spread over several: the part counts as the layer.
PART_OF = {"typed": "config", "sections": "config"}
# Modules that need nothing of this project and that every layer may import.
COMMON = {"compiled", "jit", "threads"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def dotted(path: Path) -> str:
    """Module name below the package: mink_decouple/data/io.py -> data.io, mink_decouple/__init__.py -> ''."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    target = PACKAGE.joinpath(*module.split("."))
    return target.is_dir() or target.with_suffix(".py").is_file()


def imported(path: Path, node: ast.AST) -> Iterator[str]:
    """Absolute names of the modules that an import statement reads."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = ["mink_decouple", *dotted(path).split(".")] if dotted(path) else ["mink_decouple"]
            up = node.level - (path.name == "__init__.py")
            base = ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            is_module = base.split(".")[0] == "mink_decouple" and exists(inner.partition(".")[2])
            yield inner if is_module else base


def own_imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Each import of this project's modules, without the leading mink_decouple; '' is the package itself."""
    for node in ast.walk(tree(path)):
        for name in imported(path, node):
            top, _, rest = name.partition(".")
            if top == "mink_decouple":
                yield node, rest


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not the bodies of functions, nor what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_on_import(child)


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def keyword(call: ast.Call, name: str) -> object:
    for item in call.keywords:
        if item.arg == name:
            return item.value.value if isinstance(item.value, ast.Constant) else ...
    return None


def test_the_table_is_the_one_of_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in page.split("## Layers")[1].split("\n\n")[1].splitlines() if line.startswith("| `")]
    assert rows == LAYERS.strip().splitlines()


def test_the_table_is_read_as_it_is_meant():
    assert ALLOWED["config"] == set()
    assert ALLOWED["data"] == {"config"}
    assert ALLOWED["engine"] == {"config", "metrics", "sparse", "decouple", "data", "models"}
    assert ALLOWED["report"] == {"data.cloud", "data.classes", "data.io", "metrics"}
    assert ALLOWED["cli"] is None and ALLOWED["tools"] is None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: dotted(p) or "mink_decouple")
def test_a_module_imports_only_from_the_layers_below(path: Path):
    layer = dotted(path).split(".")[0]
    if layer in ("", "__main__"):
        layer = "cli" if layer else "config"
    layer = PART_OF.get(layer, layer)
    if layer in COMMON:
        assert not list(own_imports(path))
        return
    assert layer in ALLOWED, f"{path.relative_to(ROOT)}: no row for {layer!r} in docs/architecture.md"
    allowed = ALLOWED[layer]
    for node, name in own_imports(path):
        top = name.split(".")[0]
        inside = name == "" or top in COMMON or PART_OF.get(top, top) == layer
        known = PART_OF.get(top, name)
        permitted = allowed is None or any(known == a or known.startswith(f"{a}.") for a in allowed)
        assert inside or permitted, f"{where(path, node)}: {layer} may not import mink_decouple.{name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: dotted(p) or "mink_decouple")
def test_optional_packages_are_imported_where_they_are_used(path: Path):
    for node in run_on_import(tree(path)):
        for name in imported(path, node):
            assert name.split(".")[0] not in OPTIONAL, (
                f"{where(path, node)}: import {name} inside the function that uses it"
            )
            assert name.split(".")[0] != TRITON or dotted(path) == "sparse.triton_runtime", where(path, node)


def test_the_package_imports_without_any_optional_package():
    code = f"""
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted({*OPTIONAL, TRITON})!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import mink_decouple
for module in pkgutil.walk_packages(mink_decouple.__path__, "mink_decouple."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", TOOLS, ids=lambda p: p.name)
def test_a_tool_is_at_most_15_lines_over_the_command_line(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 15


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates_what_it_reads(path: Path):
    for node in ast.walk(tree(path)):
        for name in imported(path, node):
            assert name.split(".")[0] not in PICKLES, f"{where(path, node)}: {name}"
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "yaml"):
            assert not {a.name for a in node.names} & {"load", "load_all", "unsafe_load"}, where(path, node)
    for call, name in calls(path):
        if name in ("eval", "exec"):
            raise AssertionError(f"{where(path, call)}: {name}")
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, f"{where(path, call)}: torch.load needs weights_only=True"
        if name.startswith("yaml.") and "load" in name:
            assert name in ("yaml.safe_load", "yaml.safe_load_all"), f"{where(path, call)}: {name}"
        assert keyword(call, "allow_pickle") in (None, False), f"{where(path, call)}: allow_pickle"


def test_the_rules_catch_what_they_are_for(tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import sklearn.metrics\ndef f():\n    import laspy\nif True:\n    import open3d\n", encoding="utf-8"
    )
    seen = {name for node in run_on_import(tree(bad)) for name in imported(bad, node)}
    assert seen == {"sklearn.metrics", "open3d"}
    inside = PACKAGE / "data" / "pretend.py"
    parsed = ast.parse("from ..engine import train\nfrom . import cloud\nfrom mink_decouple import models\n")
    assert [list(imported(inside, node)) for node in parsed.body] == [
        ["mink_decouple.engine.train" if exists("engine.train") else "mink_decouple.engine"],
        ["mink_decouple.data.cloud" if exists("data.cloud") else "mink_decouple.data"],
        ["mink_decouple.models"],
    ]
