"""Put configs/ into the wheel, beside the code that lists them; pyproject.toml says the rest."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Build the package and copy the configs into it, except where it stays in the checkout."""

    def run(self):
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "aa_surgery", "mmpretrain", "configs")
            copytree(Path(__file__).parent / "configs", inside, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildPy})
