"""The page of settings is that of the code: every key with its default, every transform."""

import dataclasses
from pathlib import Path

from mink_decouple import describe
from mink_decouple.config import Config
from mink_decouple.data.transforms import TRANSFORMS

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date():
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == describe.page(), "run: python -m mink_decouple.describe > docs/settings.md"


def test_every_key_and_transform_is_there_and_says_what_it_is():
    page = describe.page()

    def keys(tree):
        for key, value in tree.items():
            yield from keys(value) if isinstance(value, dict) and value else [key]

    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for key in keys(dataclasses.asdict(Config())):
        assert any(f"`{key}`" in row or f".{key}`" in row for row in rows), key
    assert all(f"| `{name}` |" in page for name in TRANSFORMS)
    assert "| `i_step.epochs` | `30` | from 1 |" in page and "| `voxel` | `null` |" in page
