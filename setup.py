"""Compiles the C libraries into the package where there is a compiler; everything else stands in pyproject.toml.

Without a compiler, or when one of them does not compile, the installation succeeds all the same: the program compiles
what it misses at its first use, or does without.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the backend of pip leaves this folder out

from pangu_lab import compiling  # noqa: E402


class BuildWithLibraries(build_py):
    """Beside the Python files, or in an editable installation beside the sources."""

    def run(self):
        super().run()
        folder = (HERE if self.editable_mode else Path(self.build_lib)) / "pangu_lab" / compiling.BUILT
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier build made of other sources
        for library in compiling.LIBRARIES.values():
            if path := compiling.build(library, folder):
                path.chmod(0o755)  # for everybody, as the rest of the package is
                folder.chmod(0o755)


class WithLibraries(Distribution):
    """What is compiled makes a wheel for one platform."""

    def has_ext_modules(self):
        return compiling.compiler() is not None


class Wheel(bdist_wheel):
    """Plain shared libraries: for this platform, but for any Python."""

    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


setup(distclass=WithLibraries, cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": Wheel})
