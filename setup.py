"""What pyproject.toml cannot say: programs/, at the top of the repository, is installed as tracr_bridge.programs.

As a package of its own it would be hidden by any folder of that name in a user's project.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["edgeprune*", "tracr_bridge*"]), "tracr_bridge.programs"],
    package_dir={"tracr_bridge.programs": "programs"},
)
