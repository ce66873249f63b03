"""Files that a plan reads, in a child process that some of them end."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from corpus_asr.stages import inspection
from corpus_asr.stages.inspection import IsolatedInspection
from corpus_asr.storage.run_state import moved
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, File
from tests.support.runs import REVISION, ManualRun

FUNCTION = "tests.support.isolated:length_or_harm"


@pytest.fixture
def inspect() -> Iterator[IsolatedInspection]:
    with closing(IsolatedInspection(timeout_s=1.5)) as isolated:
        yield isolated


def files_of(folder: Path, *contents: str) -> list[File]:
    paths = [folder / f"{number}.bin" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return [(str(path), None) for path in paths]


@pytest.mark.long
def test_a_file_that_ends_its_process_has_no_answer_and_others_have(
    tmp_path: Path, inspect: IsolatedInspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_FILES_AT_ONCE", 3)
    files = files_of(tmp_path, "a", "abort", "ab", "abc", "", "abort")
    files.append((str(tmp_path / "missing"), None))
    assert inspect(FUNCTION, files, DEFAULT_STORE) == [1, None, 2, 3, 0, None, None]
    assert inspect(FUNCTION, [], DEFAULT_STORE) == []


@pytest.mark.long
def test_silence_and_endless_reading_end_and_slow_reading_does_not(
    tmp_path: Path, inspect: IsolatedInspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_SIGN_OF_LIFE_S", 0.2)
    files = files_of(tmp_path, "slow", "loop" * 10_000, "hang")
    began_s = time.monotonic()
    assert inspect(FUNCTION, files, DEFAULT_STORE) == [4, None, None]
    assert time.monotonic() - began_s < 30


@pytest.mark.long
def test_a_plan_goes_on_where_a_changed_file_ends_the_demuxer(
    tmp_path: Path, inspect: IsolatedInspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest was read in the process of the command, which ended with the file."""
    job = ManualRun(tmp_path)
    job.begin()
    for name in ("a.wav", "b.wav", "c.wav"):
        job.commit(name)
    job.finish()
    (job.source / "a.wav").write_bytes(b"abort")
    (job.source / "a.txt").write_bytes(b"abort")
    monkeypatch.setattr(moved, "SOUND_DIGEST", FUNCTION)
    plan = make_plan(job.config, job.store, model_revision=REVISION, inspect=inspect)
    assert (plan.num_changed, plan.num_done) == (1, 2)
