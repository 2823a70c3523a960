"""How a label budget is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

FORMS = (
    "Npt (N per class present in each cloud: 1pt), R% (of each class in each cloud, at least one: 1%, 0.1%), "
    "Nx (N per cloud: 20x), uniform:R% (of the points of each cloud, whatever their class: uniform:0.1%), "
    "scans:R% (all labels of R% of the clouds), list:FILE (a published list of points), full, "
    "or the path of a label file"
)

_PATTERNS = {
    "per_class": r"(\d+)pt",
    "share": r"(\d*\.?\d+)%",
    "per_cloud": r"(\d+)x",
    "uniform": r"uniform:(\d*\.?\d+)%",
    "scans": r"scans:(\d*\.?\d+)%",
}
_LIST = "list:"


@dataclass(frozen=True)
class Budget:
    """A parsed label budget.

    Attributes:
        text: as written.
        kind: ``per_class``, ``share``, ``per_cloud``, ``uniform``, ``scans``, ``list``, ``full`` or ``file``.
        amount: points (``per_class``, ``per_cloud``) or a fraction of 1 (``share``, ``uniform``, ``scans``), exact; 1
            otherwise.
    """

    text: str
    kind: str
    amount: Fraction = Fraction(1)

    @property
    def path(self) -> Path:
        """The file of a ``file`` or ``list`` budget."""
        return Path(self.text.removeprefix(_LIST) if self.kind == "list" else self.text)


def parse_budget(text: str) -> Budget:
    """Read a label budget.

    Args:
        text: ``1pt``, ``1%``, ``0.1%``, ``20x``, ``uniform:0.1%``, ``scans:1%``, ``list:FILE``, ``full`` or the path
            of a label file.

    Raises:
        ValueError: no such form, or an amount of zero or of more than 100 %.
        FileNotFoundError: it names a list or an ``.npz`` that does not exist.
    """
    text = str(text).strip()
    if text == "full":
        return Budget(text, "full")
    for kind, pattern in _PATTERNS.items():
        match = re.fullmatch(pattern, text)
        if match:
            amount = Fraction(match[1]) / (100 if "%" in text else 1)
            if amount <= 0 or ("%" in text and amount > 1):
                raise ValueError(f"label budget {text!r}: the amount must be above 0 and at most 100 %")
            return Budget(text, kind, amount)
    if text.startswith(_LIST):
        budget = Budget(text, "list")
        if not budget.path.is_file():
            raise FileNotFoundError(f"list of points {budget.path}: no such file")
        return budget
    if Path(text).is_file():
        return Budget(text, "file")
    if text.endswith(".npz"):
        raise FileNotFoundError(f"label file {text}: no such file")
    raise ValueError(f"label budget {text!r}: must be {FORMS}")
