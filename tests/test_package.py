"""The face of the package: its names, its version, its types, and examples that run."""

import doctest
import importlib
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import corpus_asr
from corpus_asr.runtime.transcriber import Transcriber

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = (
    "corpus_asr",
    "corpus_asr.formats.transcript",
    "corpus_asr.runtime.batches",
    "corpus_asr.runtime.transcriber",
)


def test_the_public_names_are_there_and_nothing_else_is_listed() -> None:
    assert dir(corpus_asr) == sorted(corpus_asr.__all__)
    for name in corpus_asr.__all__:
        assert getattr(corpus_asr, name) is not None
    assert corpus_asr.__version__ == version("corpus-asr")
    with pytest.raises(AttributeError, match="has no attribute 'Transcribed'"):
        getattr(corpus_asr, "Transcribed")  # noqa: B009 - mypy knows that it is not there


def test_checkers_of_types_find_the_types() -> None:
    """PEP 561: without `py.typed` an installed package counts as untyped."""
    assert (Path(corpus_asr.__file__).parent / "py.typed").read_bytes() == b""


def checked_by_mypy(transcriber: corpus_asr.Transcriber) -> str:
    """An ignored error that is none would be one: strict mypy reads this, nothing calls it."""
    transcriber.transcribe("a.mp3", num_beams=5)  # type: ignore[call-arg]
    transcriber.transcribe("a.mp3", beam_size="five")  # type: ignore[arg-type]
    return transcriber.transcribe("a.mp3", beam_size=5, vad_filter=False).to_srt()


@pytest.fixture(scope="module")
def loaded() -> Iterator[Transcriber]:
    with Transcriber("whisper-tiny.en", temperature=0) as transcriber:
        yield transcriber


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(
    name: str, loaded: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = REPOSITORY / "tests" / "data" / "speech" / "english_short" / "cheetah_en.wav"
    shutil.copy(clip, tmp_path / "talk.wav")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {"transcriber": loaded, "transcript": loaded.transcribe("talk.wav")}
    found = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert found.attempted
    assert not found.failed


def test_examples_are_found_wherever_they_are() -> None:
    files = (REPOSITORY / "corpus_asr").rglob("*.py")
    example = re.compile(r"^ *>>> ", re.MULTILINE)
    having = {path for path in files if example.search(path.read_text())}
    known = {Path(str(importlib.import_module(name).__file__)) for name in WITH_EXAMPLES}
    assert having == known
