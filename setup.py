"""All of it is in setup.cfg, but for the configurations: beside the package in a checkout, inside it when installed."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigurations(build_py):
    """Copies `configs` into the package where one is built; an editable install finds it where it is."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "mink_decouple" / "configs"
            shutil.copytree(Path(__file__).parent / "configs", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfigurations})
