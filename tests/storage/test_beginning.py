"""Which settings may go on in a folder, and which are refused."""

from typing import Any

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.start import begin_run, fingerprint
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_ledger import config
from tests.support.commits import commit, part, results


def test_a_folder_that_is_continued_keeps_its_fingerprint(memory: str) -> None:
    store = OutputStore(memory)
    first = begin_run(store, config(), fingerprint(config(), "weights"))
    assert not first.continues
    commit(store, results(part("a", 0, texts=["x"])))
    again = config(
        extract={
            "workers": 3,
            "pack_mb": 1,
            "ahead_mb": 9,
            "item_timeout_s": 9,
            "max_file_gb": 1,
            "max_duration_h": 9,
        },
        transcribe={"slots": 2},
        source={"uri": ["/elsewhere"]},
    )
    second = begin_run(store, again, fingerprint(again, "weights"))
    assert second.continues
    assert second.run_id != first.run_id


def test_other_settings_are_refused_by_name(memory: str) -> None:
    store = OutputStore(memory)
    begin_run(store, config(), fingerprint(config(), "weights-1"))
    commit(store, results(part("a", 0, texts=["x"])))
    other = config(decoding={"language": "de"}, extract={"part_s": 60})
    with pytest.raises(ConfigError) as caught:
        begin_run(store, other, fingerprint(other, "weights-2"))
    message = str(caught.value)
    assert 'decoding.language: was "auto", now "de"' in message
    assert "extract.part_s: was 600.0, now 60.0" in message
    assert "were weights-1, now weights-2" in message
    assert "output.uri" in message
    assert "decoding.task" not in message


def test_what_a_pipeline_does_not_read_is_not_in_its_fingerprint() -> None:
    def name_of(pipeline: str, **changes: Any) -> str:
        return fingerprint(config(**changes).model_copy(update={"pipeline": pipeline}), "w")

    text, labels = "transcribe_corpus", "classify_audio"
    searched, told = {"decoding": {"language": "de"}}, {"classification": {"top_k": 1}}
    assert name_of(text) == name_of(text, **told) != name_of(text, **searched)
    assert name_of(labels) == name_of(labels, **searched) != name_of(labels, **told)
    assert name_of(labels) != name_of(text)


def test_a_folder_without_results_may_change_its_settings(memory: str) -> None:
    store = OutputStore(memory)
    begin_run(store, config(), fingerprint(config(), "w"))
    other = config(decoding={"language": "de"})
    assert not begin_run(store, other, fingerprint(other, "w")).continues


def test_results_of_unknown_origin_are_refused(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(part("a", 0, texts=["x"])))
    with pytest.raises(ConfigError, match=r"without _run/fingerprint\.json"):
        begin_run(store, config(), "f")
