"""Writes constraints.txt, the versions of uv.lock for all who install by pip.

Run by `make lock`, after `uv lock` has resolved the dependencies of pyproject.toml.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The exact versions that development, tests and measurements use: pip install -c constraints.txt
# Made by `make lock` from uv.lock. torch has no build tag, so that builds for CPU and CUDA both
# satisfy it; the libraries of CUDA, which differ between its builds, are left out.
"""
LIBRARIES_OF_CUDA = ("cuda-", "nvidia-")


def constraints_of(lock: str) -> str:
    """Return the text of constraints.txt that the text of a uv.lock stands for."""
    packages = tomllib.loads(lock)["package"]
    pins = [
        f"{package['name']}=={package['version']}"
        for package in packages
        if "registry" in package["source"] and not package["name"].startswith(LIBRARIES_OF_CUDA)
    ]
    return HEADER + "\n".join(sorted(pins)) + "\n"


if __name__ == "__main__":
    lock = (ROOT / "uv.lock").read_text()
    (ROOT / "constraints.txt").write_text(constraints_of(lock))
