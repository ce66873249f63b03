"""What people set of recordings, in runs: done again is what it changes, and nothing else."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.pipelines import driver
from corpus_asr.storage.run_state.overrides import override, read_override, save_override
from corpus_asr.storage.run_state.speaker_turns import read_turns
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support.engines import ScriptedEngine, script
from tests.support.killing import killable_job
from tests.support.tables import rows_of

Heard = list[tuple[str, tuple[str, ...]]]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A job over four recordings that looks for speakers."""
    return killable_job(tmp_path, files=4).config


def set_columns(config: RunConfig, uri: str, *, num: int | None, hotwords: str) -> None:
    store, own = OutputStore(config.output.uri), recording_id(uri)
    made = override(own, num_speakers=num, hotwords=hotwords, name="")
    assert save_override(store, made, seen=read_override(store, own).number) is not None


def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Run a job; return what the engine was given: recordings, by part, and their hotwords."""
    engine = ScriptedEngine()
    script(monkeypatch.setattr, engine=lambda _: engine)
    driver.run(config, local=True, progress=None)
    return [
        (each.recording_id, tuple(one.phrase for one in each.hotwords)) for each in engine.requests
    ]


def speakers(config: RunConfig) -> dict[str, int]:
    turns = read_turns(OutputStore(config.output.uri)) or {}
    return {each: len({turn.speaker for turn in own}) for each, own in turns.items()}


def runs_of(config: RunConfig) -> Counter[str]:
    """Return how many parts of each recording there are, by the run that committed them."""
    rows = rows_of(OutputStore(config.output.uri).outcomes(["recording_id", "run_id"]))
    return Counter(f"{row['recording_id']} {row['run_id']}" for row in rows)


def test_a_run_does_again_only_what_people_set(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, monkeypatch)
    rows = rows_of(OutputStore(config.output.uri).recordings())
    one, two = (row["recording_id"] for row in rows if "parts=1" in row["uri"] or "parts=2.wav"
                in row["uri"])  # fmt: skip
    uris = {row["recording_id"]: row["uri"] for row in rows}
    before, first = speakers(config), runs_of(config)
    [several] = [each for each in (one, two) if before[each] == 2]
    [other] = {one, two} - {several}
    # Another number of speakers: nothing is transcribed, turns of this recording are others.
    set_columns(config, uris[several], num=1, hotwords="")
    assert run(config, monkeypatch) == []
    assert speakers(config) == before | {several: 1}
    assert runs_of(config) == first
    # Hotwords: this recording alone, and a run that is killed first loses nothing.
    set_columns(config, uris[other], num=None, hotwords="Ada\nBabbage")
    finish = driver.finish

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, monkeypatch)
    monkeypatch.setattr(driver, "finish", finish)
    assert run(config, monkeypatch) == [], "it was committed before"
    again = runs_of(config)
    assert {key.split()[0] for key in again - first} == {other}
    assert again.total() == first.total()
    assert speakers(config) == before | {several: 1}
    # Unset: as it was.
    set_columns(config, uris[other], num=None, hotwords="")
    set_columns(config, uris[several], num=None, hotwords="")
    assert {each for each in run(config, monkeypatch)} == {(other, ())}
    assert speakers(config) == before
    assert run(config, monkeypatch) == []
