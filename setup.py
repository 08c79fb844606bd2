"""The packages to install and their names; the rest is in pyproject.toml.

`apps/` and `torchx_components/` lie at the top of the repository and are installed
inside `learn_torchrec`, where they cannot clash with another package `apps`. Benchmarks
need the repository and are not installed.
"""

from setuptools import find_packages, setup

INSIDE = ("apps", "torchx_components")
FOLDERS = ("checkup", "common", "evaluating", "experiments", "planning", "refreshing")
PARTS = tuple(f"apps.{name}" for name in FOLDERS)
found = find_packages(include=["learn_torchrec*", *INSIDE, *PARTS])

setup(
    packages=[
        f"learn_torchrec.{name}" if name.partition(".")[0] in INSIDE else name
        for name in found
    ],
    package_dir={f"learn_torchrec.{name}": name for name in INSIDE},
)
