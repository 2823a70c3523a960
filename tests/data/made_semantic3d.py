"""The generator of Semantic3D's raw format, from the folder of benchmarks."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "make_semantic3d.py"
_SPEC = importlib.util.spec_from_file_location("make_semantic3d", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
make_semantic3d = importlib.util.module_from_spec(_SPEC)
sys.modules["make_semantic3d"] = make_semantic3d
_SPEC.loader.exec_module(make_semantic3d)
