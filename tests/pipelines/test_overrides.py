"""What people set of recordings, in runs: done again is what it changes, and nothing else."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines import driver
from corpus_asr.storage.run_state.overrides import override, save_override
from corpus_asr.storage.run_state.speaker_turns import read_turns
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.engines import ScriptedEngine, script
from tests.support.killing import killable_job
from tests.support.tables import rows_of

Given = list[tuple[str, tuple[str, ...]]]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A job over four recordings that looks for speakers."""
    return killable_job(tmp_path, files=4).config


def set_columns(config: RunConfig, own: str, *, num: int | None = None, hotwords: str = "") -> None:
    made = override(own, num_speakers=num, hotwords=hotwords, name="")
    assert save_override(OutputStore(config.output.uri), made, seen=0) is not None


def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Given:
    """Run a job; return what the engine was given: recordings, by part, and their hotwords."""
    engine = ScriptedEngine()
    script(monkeypatch.setattr, engine=lambda _: engine)
    with contextlib.suppress(KeyboardInterrupt):
        driver.run(config, local=True, progress=None)
    return [
        (each.recording_id, tuple(one.phrase for one in each.hotwords)) for each in engine.requests
    ]


def speakers(config: RunConfig) -> dict[str, int]:
    turns = read_turns(OutputStore(config.output.uri)) or {}
    return {each: len({turn.speaker for turn in own}) for each, own in turns.items()}


def parts(config: RunConfig) -> Counter[tuple[str, str]]:
    """Return how many parts of each recording there are, by the run that committed them."""
    rows = rows_of(OutputStore(config.output.uri).outcomes(["recording_id", "run_id"]))
    return Counter((row["recording_id"], row["run_id"]) for row in rows)


@pytest.mark.long
def test_a_run_does_again_only_what_people_set_also_after_a_kill(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, monkeypatch)
    found, first = speakers(config), parts(config)
    several = next(each for each, number in found.items() if number == 2)
    [one] = [row["recording_id"] for row in rows_of(OutputStore(config.output.uri).recordings())
             if "parts=1" in row["uri"]]  # fmt: skip
    # Another number of speakers transcribes nothing; hotwords transcribe their recording alone.
    set_columns(config, several, num=1)
    set_columns(config, one, hotwords="Ada\nBabbage")
    with monkeypatch.context() as patched:

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(driver, "finish", killed)
        assert run(config, monkeypatch) == [(one, ("Ada", "Babbage"))]
        assert speakers(config) == found
    assert run(config, monkeypatch) == [], "it was committed before"
    again = parts(config)
    assert {each for each, _ in again - first} == {one}
    assert again.total() == first.total()
    assert speakers(config) == found | {several: 1}
