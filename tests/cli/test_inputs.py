"""Which recordings the arguments of `transcribe` name, and what is said of those that name none."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from corpus_asr.cli.inputs import Inputs, Pipe, inputs_of
from tests.support.stores import default_s3


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp3", "talks/b.wav", "talks/deep/c.MP4", "talks/notes.TXT", "talks/x [1].ogg",
                 "empty/.keep", "texts/a.txt", "texts/b.srt"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "empty" / ".keep").unlink()
    return tmp_path


def named(inputs: Inputs) -> list[str]:
    assert inputs.total == len(inputs.found) + len(inputs.problems)
    return [each.name for each in inputs.found]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("words", "names", "num_ignored"),
    [
        (["a.mp3"], ["a.mp3"], 0),
        (["./a.mp3", "a.mp3"], ["./a.mp3"], 0),  # once, as it was typed first
        (["talks"], ["talks/b.wav", "talks/x [1].ogg", "talks/deep/c.MP4"], 1),
        (["talks/"], ["talks/b.wav", "talks/x [1].ogg", "talks/deep/c.MP4"], 1),
        (["talks/*.wav", "talks/*.nothing"], ["talks/b.wav"], 0),
        (["**/*.MP4"], ["talks/deep/c.MP4"], 0),
        (["talks/x [1].ogg"], ["talks/x [1].ogg"], 0),  # exists: no glob
        (["talks/notes.TXT"], ["talks/notes.TXT"], 0),  # named in full
        (["../{here}/a.mp3", "talks/b.wav"], ["../{here}/a.mp3", "talks/b.wav"], 0),
        (["http://h.org/x/y.mp3?z=1/2"], ["http://h.org/x/y.mp3?z=1/2"], 0),
    ],
)
def test_files_folders_and_globs_name_each_recording_once(
    words: list[str], names: list[str], num_ignored: int, tmp_path: Path
) -> None:
    here = tmp_path.name
    inputs = inputs_of([word.format(here=here) for word in words])
    assert named(inputs) == [name.format(here=here) for name in names]
    assert inputs.num_ignored == num_ignored


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "b.mp3",
            "reading b.mp3: found no such file; correct its name: did you mean {here}/a.mp3?",
        ),
        ("talks/*.flac", "reading talks/*.flac: no file matches; correct the pattern"),
        (
            "texts",
            "reading texts: found no recording (2 files that are not audio), expected one",
        ),
        ("empty", "reading empty: found an empty folder, expected recordings"),
        ("", "found an empty one or a null character"),
        ("s4://bucket/a", "s4://"),
    ],
)
def test_what_is_not_there_is_told_and_does_not_stop_the_others(
    word: str, message: str, tmp_path: Path
) -> None:
    inputs = inputs_of([word, "a.mp3"])
    assert named(inputs) == ["a.mp3"]
    (problem,) = inputs.problems
    assert message.format(here=tmp_path) in problem


def test_standard_input_and_pipes_are_read_as_streams(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(b"sound"), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    reader, writer = os.pipe()
    os.write(writer, b"more sound")
    os.close(writer)
    piped = f"/dev/fd/{reader}"  # what a shell writes for <(command)
    inputs = inputs_of(["-", piped, "-", "a.mp3"])
    assert named(inputs) == ["-", piped, "a.mp3"]
    assert inputs.found[0].uri == f"{tree}/stdin"
    assert [each.piped for each in inputs.found] == [True, True, False]
    for each, sound in zip(inputs.found, (b"sound", b"more sound"), strict=False):
        pipe = each.audio
        assert isinstance(pipe, Pipe)
        assert (pipe.name, pipe.read(), pipe.read()) == (each.name, sound, b"")
    assert inputs.found[2].audio == "a.mp3"
    os.close(reader)
    with open("a.mp3", "rb") as regular:  # another file in the process that decodes
        (found,) = inputs_of([f"/dev/fd/{regular.fileno()}"]).found
    assert found.piped


def test_object_stores_have_folders_and_globs_as_well() -> None:
    with default_s3() as server:
        server.make_bucket("corpus")
        for key in ("talks/a.mp3", "talks/deep/b.mp3", "talks/a.txt"):
            server.put("corpus", key, b"x")
        inputs = inputs_of(["s3://corpus/talks", "s3://corpus/*/a.*", "s3://corpus/none.mp3"])
    assert named(inputs) == ["s3://corpus/talks/a.mp3", "s3://corpus/talks/deep/b.mp3"]
    assert {each.base for each in inputs.found} == {"s3://corpus/talks/"}
    assert inputs.num_ignored == 2
    assert inputs.problems == ["reading s3://corpus/none.mp3: found no such file; correct its name"]
