"""The engine and the GPU tests on a machine that has torch, transformers and pytest alone.

`python -S` leaves out site-packages; in its place comes a folder of links to what these few
packages bring along. So no plugin of pytest, and no other dependency of corpus-asr, is there.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu.validate import STAGES
from tests.repo.sources import REPOSITORY

THERE = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "pytest")
# Some versions of huggingface-hub bring it along, for what nothing here uses.
NOT_THERE = {"pydantic", "pydantic-core", "typing-inspection", "annotated-types"}
LIMIT_S = 240


def brought_along() -> set[str]:
    """Return the installed distributions that `THERE` need, themselves included."""
    found: set[str] = set()
    queue = [*THERE]
    while queue:
        name = queue.pop()
        if name in found | NOT_THERE:
            continue
        try:
            requires = map(Requirement, distribution(name).requires or ())
        except PackageNotFoundError:  # this platform or version of Python does without it
            continue
        found.add(name)
        queue += [
            one.name for one in requires if not one.marker or one.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the site-packages of a machine that has no more than that."""
    folder = tmp_path_factory.mktemp("bare") / "site"
    folder.mkdir()
    for found in map(distribution, sorted(brought_along())):
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def run_bare(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository with the packages in `site` alone."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


ABSENT = (
    "pydantic", "ray", "av", "beartype", "jaxtyping", "pyarrow", "onnxruntime", "hypothesis",
    "pytest_timeout", "xdist", "s3fs", "aiohttp", "sentencepiece", "scipy", "jiwer",
)  # fmt: skip
LOAD_ALL_AND_VALIDATE = f"""
import runpy
from importlib.util import find_spec
assert [name for name in {ABSENT} if find_spec(name) is not None] == []
import corpus_asr.transcription.routing, corpus_asr.transcription.speech2text
import corpus_asr.models.generation.whisper, corpus_asr.models.auto
import benchmarks.networks
import corpus_asr.models.whisper as whisper
assert len([getattr(whisper, name) for name in whisper.__all__]) > 10
runpy.run_module("benchmarks.gpu.validate", run_name="__main__")
"""


LINE = re.compile(r"(\w+) +([\w.%-]+) +(\S+)( .+)?")


# All of them transcribe minutes of speech several times.
@pytest.mark.long
@pytest.mark.parametrize(
    "stages",
    [["waits", "step"], pytest.param([*STAGES], marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_all_loads_and_the_validation_says_each_figure_twice(
    site: Path, tmp_path: Path, stages: list[str]
) -> None:
    path = tmp_path / "found.json"
    done = run_bare(
        site, "-c", LOAD_ALL_AND_VALIDATE, "--shape", "nano", "--device", "cpu", "--quick",
        "--json", str(path), *stages,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    found = json.loads(path.read_text())
    assert json.loads(last) == found
    said = [match.groups() for line in lines if (match := LINE.fullmatch(line))]
    assert len(said) == len(lines)
    figures = {(stage, key): value for stage, key, value, _ in said}
    for one in found["figures"]:
        assert figures[one["stage"], one["key"]] == str(one["value"])
    status = {one["stage"]: one["status"] for one in found["stages"]}
    assert list(status) == stages
    needs_cuda = {"waits", "memory", "compiled"} & {*stages}
    assert {name for name, how in status.items() if how == "skipped"} == needs_cuda
    assert {stage for stage, key in figures if key != "status"} == {"about", *stages} - needs_cuda
    if "validation" in stages:
        assert figures["validation", "cpu.float32.greedy.not_as_committed"] == "0"
        assert figures["transformers", "slots_2.same_text"] == "100.0"
