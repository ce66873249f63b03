"""Which settings may go on in a folder, and which are refused."""

import hashlib
import json
from typing import Any

import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.run_files import (
    FINGERPRINT_NAME,
    begin_run,
    fingerprint,
    result_settings,
)
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_run_tables import config
from tests.support.tables import commit, part, results


def test_a_folder_that_is_continued_keeps_its_fingerprint(memory: str) -> None:
    store = OutputStore(memory)
    first = begin_run(store, config(), fingerprint(config(), "weights"))
    assert not first.continues
    commit(store, results(part("a", 0, texts=["x"])))
    resources = {
        "workers": 3,
        "pack_mb": 1,
        "max_buffered_features_mb": 9,
        "item_timeout_s": 9,
        "max_file_gb": 1,
    }
    again = config(
        extract=resources | {"max_duration_h": 9},
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
    assert (
        'found results of other settings (decoding.language: was "auto", now "de", '
        "extract.part_s: was 600.0, now 60.0, model weights: were weights-1, now weights-2), "
    ) in message
    assert fingerprint(config(), "w").partition("-")[0] not in message
    assert "output.uri" in message
    assert "decoding.task" not in message


def stored_settings(store: OutputStore, **changes: Any) -> None:
    """Write the settings of a folder as another version did; without those that are `...`."""
    note = store.read_json(FINGERPRINT_NAME) or {}
    settings = note["settings"] | changes
    kept = {key: value for key, value in settings.items() if value is not ...}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
    note = {"fingerprint": f"{digest}-weights", "settings": kept}
    store.write_json(FINGERPRINT_NAME, note)


def test_a_setting_that_an_older_version_did_not_have_counts_as_its_default(memory: str) -> None:
    store = OutputStore(memory)
    first = begin_run(store, config(), fingerprint(config(), "weights"))
    commit(store, results(part("a", 0, texts=["x"])))
    every = list((store.read_json(FINGERPRINT_NAME) or {})["settings"])
    assert {"decoding.prefix", "extract.part_s", "model.compute_type", "speakers"} <= {*every}
    for key in every:
        stored_settings(store, **dict.fromkeys([key], ...))
        assert begin_run(store, config(), fingerprint(config(), "weights")).continues, key
        assert (store.read_json(FINGERPRINT_NAME) or {})["settings"][key] == first_settings()[key]
    stored_settings(store, **{"decoding.prefix": ...})
    name = (store.read_json(FINGERPRINT_NAME) or {})["fingerprint"]
    run = begin_run(store, config(), fingerprint(config(), "weights"))
    assert run.fingerprint == name != first.fingerprint
    other = config(decoding={"prefix": "Hello"})
    stored_settings(store, **{"decoding.prefix": ..., "extract.pack_mb": 7})
    with pytest.raises(ConfigError, match=r'\(decoding\.prefix: was null, now "Hello"\)'):
        begin_run(store, other, fingerprint(other, "weights"))


def first_settings() -> dict[str, Any]:
    return result_settings(config())


def test_a_setting_that_this_version_does_not_have_is_named(memory: str) -> None:
    store = OutputStore(memory)
    begin_run(store, config(), fingerprint(config(), "weights"))
    commit(store, results(part("a", 0, texts=["x"])))
    stored_settings(store, **{"decoding.magic": 3})
    with pytest.raises(ConfigError, match=r"\(decoding\.magic: was 3, which this version does not"):
        begin_run(store, config(), fingerprint(config(), "weights"))
    stored_settings(store, **{"decoding.magic": ..., "pipeline": "classify_audio"})
    with pytest.raises(
        ConfigError, match=r"\(pipeline: was classify_audio, now transcribe_corpus\)"
    ):
        begin_run(store, config(), fingerprint(config(), "weights"))


def test_what_a_pipeline_does_not_read_is_not_in_its_fingerprint() -> None:
    def name_of(pipeline: str, **changes: Any) -> str:
        return fingerprint(config(**changes).model_copy(update={"pipeline": pipeline}), "w")

    text, labels = "transcribe_corpus", "classify_audio"
    searched, messages = {"decoding": {"language": "de"}}, {"classification": {"top_k": 1}}
    assert name_of(text) == name_of(text, **messages) != name_of(text, **searched)
    assert name_of(labels) == name_of(labels, **searched) != name_of(labels, **messages)
    assert name_of(labels) != name_of(text)


def test_a_folder_without_results_may_change_its_settings(memory: str) -> None:
    store = OutputStore(memory)
    for code in ("en", "de"):
        job = config(decoding={"language": code})
        assert not begin_run(store, job, fingerprint(job, "w")).continues


def test_results_of_unknown_origin_are_refused(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(part("a", 0, texts=["x"])))
    with pytest.raises(ConfigError, match=r"without _run/fingerprint\.json"):
        begin_run(store, config(), fingerprint(config(), "w"))
