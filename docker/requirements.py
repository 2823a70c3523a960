"""Print the dependencies of this package but torch, with those of some extras: `requirements.py las,test`.

An image installs them before the source is copied, so that a change of the source leaves that layer alone.
"""

import configparser
import sys
from importlib import metadata
from pathlib import Path

config = configparser.ConfigParser()
config.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
extras = config["options.extras_require"]
names = [name for name in sys.argv[1].split(",") if name]
unknown = [name for name in names if name not in extras]
if unknown:
    sys.exit(f"error: EXTRAS: {unknown[0]!r} is no extra; choices: {', '.join(extras)}")
lines = [config["options"]["install_requires"], *(extras[name] for name in names)]
found = [line.strip() for text in lines for line in text.splitlines()]
print("\n".join(line for line in found if line and not line.startswith("torch>")))
print(f"torch=={metadata.version('torch')}")
