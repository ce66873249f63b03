"""Which settings may go on in a folder, and which are refused."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import ConfigError
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.finish import OutcomeCounts, finish
from corpus_asr.storage.run_state.forget import finish_killed
from corpus_asr.storage.run_state.lock import CHANGE_NAME
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.run_files import (
    FINGERPRINT_NAME,
    RunRecord,
    begin_run,
    fingerprint,
    result_settings,
)
from corpus_asr.storage.run_state.tables import OutputStore
from tests.storage.test_run_tables import config
from tests.support.stores import life
from tests.support.tables import (
    commit,
    files,
    part,
    remaining,
    results,
    rows_of,
    stored_segments,
)


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


@pytest.mark.parametrize("version", ["0.1.0"])
def test_folders_of_each_released_version_are_continued(memory: str, version: str) -> None:
    store = OutputStore(memory)
    note = json.loads(Path(f"tests/data/settings/{version}.json").read_text(encoding="utf-8"))
    sections: dict[str, dict[str, Any]] = {}
    for key, value in note["settings"].items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    job = config(**sections)
    begin_run(store, job, fingerprint(job, "weights"))
    commit(store, results(part("a", 0, texts=["x"])))
    store.write_json(FINGERPRINT_NAME, note)
    assert begin_run(store, job, fingerprint(job, "weights")).continues


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
    begin(store, OLD)
    assert not begin(store, OTHER).continues


NEW = RunOptions(new_run=True)
OLD, OTHER, THIRD = (config(decoding={"language": code}) for code in ("en", "de", "fr"))
NAMES = ("a", "b", "c")


def begin(store: OutputStore, config: RunConfig, *, new_run: bool = False) -> RunRecord:
    return begin_run(store, config, fingerprint(config, "w"), new_run=new_run)


def complete(store: OutputStore, config: RunConfig, run: RunRecord) -> OutcomeCounts:
    """Do what is left, in the language of the settings, and finish."""
    language = str(config.decoding.language)
    for row in remaining(store, files(*NAMES)):
        name = row["uri"].lstrip("/")
        commit(store, results(part(name, 0, texts=[f"{name} {language}"])), run_id=run.run_id)
    listing = [files(*NAMES)]
    return finish(store, run, config, model_revision="w", listing=listing, num_listed=len(NAMES))


def texts(store: OutputStore) -> list[str]:
    return sorted(
        text for batch in stored_segments(store, ["text"]) for text in batch.column(0).to_pylist()
    )


def aside(store: OutputStore) -> list[OutputStore]:
    """Return what was put aside, oldest first."""
    folders = sorted({name.split("/")[1] for name in store.all_names("_earlier")})
    return [
        OutputStore(store.address(f"_earlier/{folder}"), endpoint_url=store.options.endpoint_url)
        for folder in folders
    ]


ENGLISH, GERMAN = ["a en", "b en", "c en"], ["a de", "b de", "c de"]


def finished(store: OutputStore) -> OutputStore:
    """Fill the folder with a finished run of the old settings."""
    complete(store, OLD, begin(store, OLD))
    return store


@pytest.mark.long
def test_earlier_results_are_kept_whole_and_apart(store: OutputStore) -> None:
    finished(store)
    with pytest.raises(ConfigError, match=r"decoding\.language.*_earlier.*--new-run"):
        begin(store, OTHER)
    run = begin(store, OTHER, new_run=True)
    assert not run.continues
    assert texts(store) == []
    assert list(store.recordings()) == []
    [earlier] = aside(store)
    assert earlier.uri.endswith(f"_earlier/before-{run.run_id}")
    assert texts(earlier) == ENGLISH
    assert earlier.exists("_SUCCESS")
    assert not store.exists("_SUCCESS")
    assert load_report(earlier).statistics is not None
    assert not begin(earlier, OLD).run_id.startswith("before")  # it may be continued there, too
    assert complete(store, OTHER, run).remaining == 0
    assert texts(store) == GERMAN
    assert texts(earlier) == ENGLISH


def test_a_new_run_that_has_begun_is_continued_by_the_same_command(memory: str) -> None:
    store = finished(OutputStore(memory))
    begin(store, OTHER, new_run=True)
    commit(store, results(part("a", 0, texts=["a de"])))
    again = begin(store, OTHER, new_run=True)
    assert again.continues
    assert texts(store) == ["a de"]
    complete(store, OTHER, again)
    assert complete(store, OTHER, begin(store, OTHER)).remaining == 0
    assert texts(store) == GERMAN
    assert len(aside(store)) == 1


def test_a_plan_for_a_new_run_covers_everything_and_moves_nothing(
    tmp_path: Path, memory: str
) -> None:
    (tmp_path / "a.mp3").write_bytes(b"x" * 100)
    store = OutputStore(memory)
    source = {"uri": [str(tmp_path)]}
    old, other = (config(decoding={"language": code}, source=source) for code in ("en", "de"))
    begin(store, old)
    uri = str(tmp_path / "a.mp3")
    commit(store, results(part("a", 0, texts=["x"], uri=uri, etag=None)))
    assert make_plan(old, store, model_revision="w", options=NEW).num_remaining == 0
    assert make_plan(other, store, model_revision="w", options=NEW).num_remaining == 1
    with pytest.raises(ConfigError, match="--new-run"):
        make_plan(other, store, model_revision="w")
    assert texts(store) == ["x"]
    assert aside(store) == []


def test_results_of_unknown_origin_are_refused_and_not_even_moved(memory: str) -> None:
    store = OutputStore(memory)
    commit(store, results(part("a", 0, texts=["x"])))
    for new_run in (False, True):
        with pytest.raises(ConfigError, match=r"without _run/fingerprint\.json"):
            begin(store, OLD, new_run=new_run)
    assert texts(store) == ["x"]


def killed_new_run(after: int) -> OutputStore | None:
    """Let a new run die after so many changes to the store; None if it does not come to that."""
    store = finished(OutputStore(f"memory://{uuid.uuid4().hex}"))
    with life(after) as process:
        begin(store, OTHER, new_run=True)
    return store if process.killed else None


@pytest.mark.slow
def test_a_new_run_killed_anywhere_loses_nothing_and_goes_on() -> None:
    moments = 0
    while store := killed_new_run(moments):
        everywhere = sorted(texts_anywhere(store))
        assert everywhere == ENGLISH, "nothing is lost or doubled at any moment"
        if store.exists(CHANGE_NAME):
            with pytest.raises(ConfigError, match="stopped while it moved"):
                begin(store, OLD)
        run = begin(store, OTHER, new_run=moments % 2 == 0 or not store.exists(CHANGE_NAME))
        complete(store, OTHER, run)
        [earlier] = aside(store)
        assert (texts(store), texts(earlier)) == (GERMAN, ENGLISH)
        assert earlier.exists("_SUCCESS")
        assert earlier.read_json("run.json")["config"]["decoding"]["language"] == "en"
        assert earlier.read_json("_run/fingerprint.json")["settings"]["decoding.language"] == "en"
        assert not store.exists(CHANGE_NAME)
        moments += 1
    assert moments > 12


def texts_anywhere(store: OutputStore) -> list[str]:
    """Return the texts of all tables: a half-moved folder can only be read by its objects."""
    tables = [name for name in store.all_names("") if name.split("/")[-2:-1] == ["segments"]]
    return [row["text"] for name in tables for row in rows_of(store.batches(name))]


def test_a_killed_new_run_may_be_followed_by_another() -> None:
    store = killed_new_run(5)
    assert store is not None
    complete(store, THIRD, begin(store, THIRD, new_run=True))
    [earlier] = aside(store)
    assert texts(earlier) == ENGLISH
    assert texts(store) == ["a fr", "b fr", "c fr"]


def test_a_killed_new_run_is_continued_by_a_command_that_changes_the_folder() -> None:
    store = killed_new_run(5)
    assert store is not None
    finish_killed(store)
    assert not store.exists(CHANGE_NAME)
    [earlier] = aside(store)
    assert texts(earlier) == ENGLISH
    assert earlier.exists("_SUCCESS")
    assert not begin(store, THIRD).continues
