"""Commands that are killed while they write files with transcripts, and typed again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.test_archive_commands import Typed

pytestmark = pytest.mark.long
_DYING = """
import os, signal, sys
place, os_replace = os.path.abspath(sys.argv.pop(1)), os.replace
def replace(source, target):
    if str(target).startswith(place):
        os.kill(os.getpid(), signal.SIGKILL)
    os_replace(source, target)
os.replace = replace
from corpus_asr.cli.main import main
main()
"""
_JOB = """
pipeline: pseudo_label
source: {{uri: {source}}}
output: {{uri: {output}}}
dataset: {{uri: {place}}}
"""


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--to", "PLACE/of", "--format", "srt"],
        ["export", "--to", "PLACE", "--format", "csv"],
        ["report", "--html", "PLACE/page.html"],
        ["label"],
    ],
    ids=" ".join,
)
def test_nothing_hidden_is_left_by_a_command_that_was_killed_once_it_is_typed_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = Typed(tmp_path, monkeypatch)
    archive.add("a", "b")
    assert archive.type("run").exit_code == 0
    place = tmp_path / "place"
    job = tmp_path / "label.yaml"
    job.write_text(_JOB.format(source=archive.source, output=archive.output, place=place))
    name, *options = (word.replace("PLACE", str(place)) for word in words)
    command = [name, str(job) if name == "label" else str(archive.output), *options]
    killed = subprocess.run([sys.executable, "-c", _DYING, str(place), *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [*place.rglob(".tmp-*")], "as a killed process leaves it"
    done = subprocess.run([sys.executable, "-m", "corpus_asr", *command], check=False)
    assert done.returncode in (0, 3 if name == "label" else 0)
    assert [*place.rglob("*")]
    assert not [*place.rglob(".tmp-*")]
