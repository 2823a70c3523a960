"""What has to change in MinkowskiEngine 0.5.4's source for current Python, torch and CUDA: `minkowski_patch.py FOLDER`.

Every substitution must match as often as it says, else the source is not the one it was written for and nothing is
written. With `minkowski_cuda.h`, which the CUDA compiler includes before every file, these are all changes.
"""

import re
import sys
from pathlib import Path

# (why, glob, pattern, replacement, number of matches)
SUBSTITUTIONS = [
    (
        "Python 3.10 removed the aliases of the abstract classes from `collections`",
        "MinkowskiEngine/**/*.py",
        r"^from collections import Sequence$",
        "from collections.abc import Sequence",
        4,
    ),
    (
        "the same, beside a name that stayed",
        "MinkowskiEngine/MinkowskiKernelGenerator.py",
        r"^from collections import Sequence, namedtuple$",
        "from collections import namedtuple\nfrom collections.abc import Sequence",
        1,
    ),
    (
        "torch deprecates instances of autograd functions; their `apply` is a static method",
        "MinkowskiEngine/*.py",
        r"\b(Minkowski\w+Function)\(\)",
        r"\1",
        18,
    ),
    (
        "the build must not remove what is installed before its successor is there",
        "setup.py",
        r'^run_command\("pip", "uninstall", "MinkowskiEngine", "-y"\)\n',
        "",
        1,
    ),
    (
        "CUDA 12.4 made `std::__to_address` ambiguous for this unique_ptr, which is stored in a shared_ptr",
        "src/3rdparty/concurrent_unordered_map.cuh",
        r"std::unique_ptr<Self, std::function<void\(Self\*\)>>\{",
        "std::shared_ptr<Self>{",
        1,
    ),
]


def patch(root: Path) -> list[str]:
    """Apply every substitution below `root`; returns a line for each.

    Raises:
        ValueError: a pattern matches more or less often than expected; nothing was written.
    """
    texts: dict[Path, str] = {}
    lines = []
    for why, glob, pattern, replacement, expected in SUBSTITUTIONS:
        count = 0
        for path in sorted(root.glob(glob)):
            text, found = re.subn(
                pattern, replacement, texts.get(path) or path.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            count += found
            if found:
                texts[path] = text
        if count != expected:
            raise ValueError(f"{root}: {glob} has {pattern!r} {count} times, not {expected}: not MinkowskiEngine 0.5.4")
        lines.append(f"changed {count} x {glob}: {why}")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return lines


if __name__ == "__main__":
    try:
        print("\n".join(patch(Path(sys.argv[1]))))
    except ValueError as error:
        sys.exit(f"error: {error}")
