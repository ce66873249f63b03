"""What an index shows of the package: who made it, for whom, and a text without dead links."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
LINK = re.compile(r"\]\(([^)]*)\)|(?:src|href)=")


def long_description() -> str:
    """Return the text that the build makes of the README, by the same rules."""
    rules = SETTINGS["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((REPOSITORY / each["path"]).read_text() for each in rules["fragments"])
    for rule in rules["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_an_index_page_has_no_link_into_the_repository() -> None:
    readme, shown = (REPOSITORY / "README.md").read_text(), long_description()
    relative = [target for target in LINK.findall(readme) if not target.startswith("http")]
    assert len(relative) > 20
    assert all(target.startswith("https://") for target in LINK.findall(shown))
    assert "![" not in shown
    # Of links the text stays, and everything else as it is.
    for words in (
        "builds container images", "| How-to | all guides |",
        "$ corpus-asr transcribe talk.mp3", "Apache 2.0. whisper-tiny.en in",
    ):  # fmt: skip
        assert words in shown
    assert len(shown.splitlines()) == len(readme.splitlines()) - 4  # the pictures


def test_the_lower_bounds_are_the_versions_that_were_tried() -> None:
    text = (REPOSITORY / "constraints-lowest.txt").read_text()
    lowest = {
        name.lower(): version for name, version in re.findall(r"^([\w-]+)==(\S+)$", text, re.M)
    }
    extras = PROJECT["optional-dependencies"]
    for line in (*PROJECT["dependencies"], *extras["test"]):
        need = Requirement(line)
        pin = lowest.get(need.name.lower())
        if line in extras["test"] and pin is None:
            continue  # of the tests alone, and without a lower one to try
        assert pin is not None, f"{line}: not in constraints-lowest.txt"
        assert need.specifier.contains(pin), line
        floors = [Version(each.version) for each in need.specifier if each.operator == ">="]
        # Older wheels of PyTorch were not at hand; jaxtyping checks shapes in the tests alone.
        assert floors == [Version(pin)] or need.name in ("torch", "jaxtyping"), line


def test_constraints_are_the_versions_of_the_lock_file() -> None:
    lock = runpy.run_path(str(REPOSITORY / ".ci/lock.py"))
    made = lock["constraints_of"]((REPOSITORY / "uv.lock").read_text())
    assert (REPOSITORY / "constraints.txt").read_text() == made, "run `make lock`"
    names = {pin.partition("==")[0] for pin in made.splitlines() if not pin.startswith("#")}
    extras = (line for lines in PROJECT["optional-dependencies"].values() for line in lines)
    needs = {Requirement(line).name.lower() for line in (*PROJECT["dependencies"], *extras)}
    assert {re.sub(r"[-_.]+", "-", name) for name in needs} - names == {"corpus-asr"}
