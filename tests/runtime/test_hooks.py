import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from corpus_asr.config.hooks import HookSettings
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.runtime import hooks
from corpus_asr.runtime.hooks import DIED, HookCounts, check_hooks
from corpus_asr.runtime.ray_cluster import Cluster
from corpus_asr.runtime.ray_workers import on_workers
from corpus_asr.storage.run_state import hook_rows, recording_rows
from corpus_asr.storage.run_state.hook_rows import hooks_of, read_rows
from corpus_asr.storage.run_state.recording_rows import LostPortion
from corpus_asr.storage.run_state.table_names import HOOKS_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from tests.support import hooks as functions
from tests.support.runs import correct_segment, finished, passage, run_of, says, spoken
from tests.support.tables import commit, record, results, run_config

HERE = "tests.support.hooks"
REDACT = HookSettings(
    name="redact", function=f"{HERE}:redact", columns={"redacted": "string", "digits": "int64"}
)
TALK = spoken("/talk.wav", passage(0, "call 555 now"), passage(1, "or never"))
OTHER = spoken("/other.wav", passage(0, "chapter 2"))


def run_hook(store: OutputStore, *arguments: Any, **options: Any) -> HookCounts:
    record(store)
    return hooks.run_hook(store, *arguments, **options)


def noted(folder: Path, **values: Any) -> HookSettings:
    options = {"folder": str(folder), **values.pop("options", {})}
    return HookSettings(
        name="noted", function=f"{HERE}:noted", columns={"length": "int32"}, options=options,
        **values,
    )  # fmt: skip


def calls(folder: Path) -> list[list[str]]:
    """Return the recordings of each call."""
    file = folder / "calls"
    found = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return found


def rows(store: OutputStore, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table by address and segment, without what is of the state."""
    found = pa.concat_tables(read_rows(store, name)).to_pylist()
    return sorted(found, key=lambda row: (row["uri"], row.get("segment") or 0))


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    found = run_of(tmp_path / "out", TALK, OTHER, spoken("/silent.wav", status="no_speech"))
    finished(found, "/talk.wav", "/other.wav", "/silent.wav")
    return found


def test_each_segment_has_a_row_with_what_the_function_returns(store: OutputStore):
    assert run_hook(store, REDACT) == HookCounts(recordings=3)
    found = rows(store, "redact")
    assert [(row["uri"], row["segment"], row["redacted"], row["digits"]) for row in found] == [
        ("/other.wav", 0, " chapter #", 1),
        ("/silent.wav", None, None, None),
        ("/talk.wav", 0, " call ### now", 3),
        ("/talk.wav", 1, " or never", 0),
    ]
    assert found[2]["recording_id"] == recording_id("/talk.wav")
    assert (found[3]["start_s"], found[3]["end_s"], found[3]["part"]) == (2.0, 4.0, 0)
    assert all(row["error_kind"] is None and row["made_of"] for row in found)
    assert hooks_of(store) == ["redact"]


def test_what_is_there_is_not_made_again(store: OutputStore, tmp_path: Path):
    hook = noted(tmp_path)
    assert run_hook(store, hook).recordings == 3
    assert len(calls(tmp_path)) == 1
    before = store.names(HOOKS_FOLDER)
    assert run_hook(store, hook) == HookCounts()
    assert calls(tmp_path) == []
    assert store.names(HOOKS_FOLDER) == before
    commit(store, results(spoken("/new.wav", passage(0, "later"))))
    assert run_hook(store, hook) == HookCounts(recordings=1)
    assert calls(tmp_path) == [[recording_id("/new.wav")]]
    assert len(rows(store, "noted")) == 5


def by_text(segments: pa.Table) -> pa.Table:
    ordered = segments.sort_by([("text", "descending")])
    return ordered.append_column("said", ordered["text"])


@pytest.mark.parametrize(
    "function",
    [
        by_text,
        lambda segments: by_text(segments).select(["segment", "part", "recording_id", "said"]),
        lambda segments: by_text(segments).to_pylist(),
        lambda segments: by_text(segments).to_pandas(),
        lambda segments: by_text(segments).drop_columns(["recording_id"]),
    ],
)
def test_values_go_to_the_segments_whose_keys_they_have(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch, function: Any
):
    """In any order; without the recording, each has to be given alone."""
    monkeypatch.setattr(functions, "by_text", function, raising=False)
    columns = {"said": "string"}
    hook = HookSettings(name="said", function=f"{HERE}:by_text", columns=columns, attempts=1)
    assert run_hook(store, hook) == HookCounts(recordings=3)
    assert [row["said"] for row in rows(store, "said")] == [
        " chapter 2", None, " call 555 now", " or never"
    ]  # fmt: skip


@pytest.mark.long
def test_a_correction_and_new_turns_are_given_again(store: OutputStore, tmp_path: Path):
    hook = noted(tmp_path)
    run_hook(store, hook)
    calls(tmp_path)
    correct_segment(store, "or never", "or not at all")
    assert run_hook(store, hook) == HookCounts(recordings=1)
    assert calls(tmp_path) == [[recording_id("/talk.wav")]]
    assert [row["length"] for row in rows(store, "noted")] == [10, None, 13, len(" or not at all")]
    says(store, "/other.wav", (0.0, 2.0, "S1"))
    assert run_hook(store, hook) == HookCounts(recordings=1)
    assert calls(tmp_path) == [[recording_id("/other.wav")]]
    assert run_hook(store, hook) == HookCounts()


@pytest.mark.long
def test_other_settings_of_the_function_make_all_again(store: OutputStore, tmp_path: Path):
    for values in ({}, {"version": 2}, {"options": {"bad": "none"}}):
        assert run_hook(store, noted(tmp_path, **values)).recordings == 3
    for values in ({"attempts": 1}, {"batch_segments": 1}):
        assert run_hook(store, noted(tmp_path, options={"bad": "none"}, **values)) == HookCounts()


def test_other_columns_make_the_table_new(store: OutputStore):
    run_hook(store, REDACT)
    (before,) = store.names(HOOKS_FOLDER)
    run_hook(store, REDACT.model_copy(update={"columns": {"digits": "string"}}))
    assert before not in store.names(HOOKS_FOLDER)
    assert [row["digits"] for row in rows(store, "redact")] == ["1", None, "3", "0"]


def test_speakers_are_of_the_turns_or_as_a_person_said(store: OutputStore):
    says(store, "/talk.wav", (0.0, 2.1, "S1"), (2.1, 4.0, "S2"))
    correct_segment(store, "call 555 now", "call 556 now", speaker="Ann")
    hook = HookSettings(
        name="who", function=f"{HERE}:speakers", columns={"speaker": "string", "corrected": "bool"}
    )
    run_hook(store, hook)
    found = [
        (row["speaker"], row["corrected"])
        for row in rows(store, "who")
        if row["segment"] is not None
    ]
    assert found == [(None, False), ("Ann", True), ("S2", False)]


def test_rows_per_recording_are_as_many_as_there_are(store: OutputStore):
    hook = HookSettings(
        name="chapters", function=f"{HERE}:chapters", per="recording",
        columns={"start_s": "float64", "text": "string"},
    )  # fmt: skip
    assert run_hook(store, hook) == HookCounts(recordings=3)
    found = [(row["uri"], row["start_s"], row["text"]) for row in rows(store, "chapters")]
    assert found == [
        ("/other.wav", 0.0, " chapter 2"), ("/silent.wav", None, None), ("/talk.wav", None, None)
    ]  # fmt: skip
    assert run_hook(store, hook) == HookCounts()


def test_a_class_is_made_once_per_process(store: OutputStore):
    hook = HookSettings(
        name="vectors", function=f"{HERE}:Loaded", columns={"vector": "list<float32>"},
        options={"factor": 2}, batch_segments=1,
    )  # fmt: skip
    functions.Loaded.made = 0
    run_hook(store, hook)
    assert functions.Loaded.made == 1
    assert [row["vector"] for row in rows(store, "vectors")] == [
        [20.0, 1.0],
        None,
        [26.0, 1.0],
        [18.0, 1.0],
    ]


def test_words_are_given_where_they_are_asked_for(store: OutputStore):
    seen = []

    def spy(segments: pa.Table) -> dict[str, list[int]]:
        seen.append(segments.schema.names)
        return functions.keyed(segments, n=[1] * segments.num_rows)

    functions.spy = spy  # type: ignore[attr-defined]
    for words in (False, True):
        run_hook(
            store,
            HookSettings(name="spy", function=f"{HERE}:spy", columns={"n": "int64"}, words=words),
        )
    assert ["words" in names for names in seen] == [False, True]
    assert seen[0][:5] == ["recording_id", "uri", "channel", "part", "segment"]


def test_one_bad_recording_is_one_row_that_is_tried_again(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hooks, "_FIRST_WAIT_S", 0.001)
    hook = noted(tmp_path, options={"bad": "555"})
    assert run_hook(store, hook) == HookCounts(recordings=2, failed=1)
    assert sorted(map(len, calls(tmp_path))) == [1, 1, 1, 1, 2]  # together, then thrice and once
    other, _, talk = rows(store, "noted")
    assert (other["length"], other["error_kind"]) == (10, None)
    assert (talk["uri"], talk["length"]) == ("/talk.wav", None)
    assert (talk["error_kind"], talk["error_message"]) == ("ValueError", "found 555")
    assert run_hook(store, hook) == HookCounts(failed=1)
    assert calls(tmp_path) == 3 * [[recording_id("/talk.wav")]]
    assert len(rows(store, "noted")) == 3
    assert run_hook(store, noted(tmp_path)) == HookCounts(recordings=3)
    assert [row["length"] for row in rows(store, "noted")] == [10, None, 13, 9]


def test_a_failure_does_not_replace_rows(store: OutputStore, tmp_path: Path):
    run_hook(store, noted(tmp_path))
    before = rows(store, "noted")
    assert run_hook(store, noted(tmp_path, options={"bad": "call"}, attempts=1)).failed == 1
    after = rows(store, "noted")
    assert [row["length"] for row in after] == [row["length"] for row in before]
    assert all(row["error_kind"] is None for row in after)
    assert run_hook(store, noted(tmp_path, options={"bad": "call"}, attempts=1)).failed == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "per", "columns", "expected"),
    [
        ("redact", "segment", {"missing": "string"}, "no column missing, expected missing"),
        ("redact", "segment", {"redacted": "int64"}, "redacted of type string"),
        (
            "first",
            "segment",
            {"text": "string"},
            "1 rows of 1 segments, expected one for each",
        ),
        (
            "twice",
            "segment",
            {"text": "string"},
            "2 rows of 1 segments, expected one for each",
        ),
        (
            "values",
            "segment",
            {"text": "string"},
            "no keys, expected the columns recording_id",
        ),
        ("values", "recording", {"text": "string"}, "no column recording_id"),
        ("check", "segment", {"n": "int64"}, "a str, expected an Arrow table"),
        ("stranger", "recording", {"n": "int64"}, "an unknown recording_id"),
        ("leaves", "segment", {"n": "int64"}, "3"),
    ],
)
def test_what_a_function_returns_wrongly_is_named(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch, function: str, per: Any,
    columns: dict[str, str], expected: str,
):  # fmt: skip
    monkeypatch.setattr(functions, "check", lambda _: "text", raising=False)
    monkeypatch.setattr(functions, "first", lambda rows: rows.slice(0, 1), raising=False)
    monkeypatch.setattr(
        functions, "twice", lambda rows: rows.take([0] * rows.num_rows), raising=False
    )
    monkeypatch.setattr(functions, "values", lambda rows: rows.select(["text"]), raising=False)
    monkeypatch.setattr(
        functions, "stranger", lambda _: [{"recording_id": "0", "n": 1}], raising=False
    )

    def leaves(_: pa.Table) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(functions, "leaves", leaves, raising=False)
    hook = HookSettings(
        name="wrong", function=f"{HERE}:{function}", per=per, columns=columns, attempts=1,
        batch_segments=100,
    )  # fmt: skip
    counts = run_hook(store, hook)
    failed = [row for row in rows(store, "wrong") if row["error_kind"]]
    assert len(failed) == counts.failed > 0
    assert expected in failed[-1]["error_message"]


@pytest.mark.long
@pytest.mark.parametrize("at", range(1, 5))
def test_killed_anywhere_each_recording_is_there_once(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    monkeypatch.setattr(hook_rows, "RECORDINGS_PER_PORTION", 1)
    seen = 0

    class Killed(BaseException):
        pass

    def counting(function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                raise Killed
            return function(*arguments, **options)

        return counted

    with monkeypatch.context() as patched:
        for module, name in ((recording_rows, "tidy"), (hooks, "put_rows"), (hooks, "tidy")):
            patched.setattr(module, name, counting(getattr(module, name)))
        with pytest.raises(Killed):
            run_hook(store, noted(tmp_path))
    calls(tmp_path)
    run_hook(store, noted(tmp_path))
    assert len(calls(tmp_path)) == max(0, 3 - at)  # nothing was called again that was put
    found = [row["uri"] for row in rows(store, "noted")]
    assert found == ["/other.wav", "/silent.wav", "/talk.wav", "/talk.wav"]
    assert len(pa.concat_tables(read_rows(store, "noted"))) == sum(
        len(pa.Table.from_batches(store.batches(name))) for name in store.names(HOOKS_FOLDER)
    )


def test_what_is_left_when_time_is_up_is_done_by_the_next_run(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hook = noted(tmp_path, batch_segments=1)
    with monkeypatch.context() as patched:
        looks = iter([False, False, True])  # at the portion, and at its two recordings with text
        patched.setattr(hooks, "_ended", lambda _: next(looks))
        assert run_hook(store, hook) == HookCounts(recordings=1, left=2)
    assert len(calls(tmp_path)) == 1
    assert run_hook(store, hook, ends_at_s=time.time() - 1) == HookCounts(left=2)
    assert run_hook(store, hook, ends_at_s=time.time() + 60) == HookCounts(recordings=2)
    assert len(calls(tmp_path)) == 1


def test_of_a_lost_portion_what_was_put_is_not_given_again(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hooks, "_COMMIT_EVERY_S", 0.0)
    hook = noted(tmp_path, batch_segments=1)

    def workers(work: Any, given: Any) -> Any:
        for at, portion in enumerate(given):
            if at or len(portion.portion.recordings) == 1:
                yield work(portion)
                continue
            with monkeypatch.context() as patched:  # ends after the first recording was put
                patched.setattr(hooks, "_ended", partial(next, iter([False, True])))
                work(portion)
            yield LostPortion(portion, EngineError("gone"))

    assert run_hook(store, hook, workers=workers) == HookCounts(recordings=3)
    assert len(calls(tmp_path)) == 2  # each once
    assert len(rows(store, "noted")) == 4


def test_a_function_that_ends_all_processes_is_given_up(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hooks, "_MOST_DEATHS", 2)

    def workers(_: Any, given: Any) -> Any:
        return (LostPortion(portion, EngineError("gone")) for portion in given)

    assert run_hook(store, REDACT, workers=workers) == HookCounts(failed=2, left=1)
    assert [row["error_kind"] for row in rows(store, "redact")] == [DIED, DIED]


def test_rows_of_a_run_that_lost_its_lock_do_not_count(store: OutputStore):
    run_hook(store, REDACT)
    (name,) = store.names(HOOKS_FOLDER)
    late = name.replace(name.rpartition("/")[2][:20], "9" * 20).replace(
        "-", "-20260101T000000Z-aaaaaa-", 1
    )
    store.close_run("20260101T000000Z-aaaaaa")
    store.write_bytes(late, Path(store.address(name)).read_bytes())
    assert store.names(HOOKS_FOLDER) == store.names("hooks/redact") == [name]


def test_what_a_person_removed_is_not_given(store: OutputStore):
    correct_segment(store, "or never", "")
    run_hook(store, REDACT)
    assert [row["redacted"] for row in rows(store, "redact")] == [
        " chapter #", None, " call ### now"
    ]  # fmt: skip


@pytest.mark.long
def test_columns_come_in_the_forms_of_other_libraries(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch
):
    forms: dict[str, Any] = {
        "frame": lambda given: given.to_pandas().assign(v=[[1.0, 2.0]] * given.num_rows),
        "matrix": lambda given: functions.keyed(
            given,
            v=np.ones((given.num_rows, 2), dtype=np.float32),  # type: ignore[arg-type]
        ),
        "batch": lambda given: pa.record_batch(functions.keyed(given, v=[[1, 2]] * given.num_rows)),
        "rows": lambda given: [
            row | ({"v": [1.0]} if at else {}) for at, row in enumerate(given.to_pylist())
        ],
    }
    for name, function in forms.items():
        monkeypatch.setattr(functions, name, function, raising=False)
        columns = {"v": "list<float32>"}
        hook = HookSettings(name=name, function=f"{HERE}:{name}", columns=columns, attempts=1)
        assert run_hook(store, hook).failed == 0, name
        assert [row["v"] for row in rows(store, name)][-1] in ([1.0, 2.0], [1.0, 1.0], [1.0])


@pytest.mark.long
@pytest.mark.ray
def test_a_recording_with_which_processes_end_is_one_row(ray_session: Cluster, store: OutputStore):
    hook = HookSettings(
        name="deadly", function=f"{HERE}:deadly", columns={"length": "int64"},
        options={"bad": "555"},
    )  # fmt: skip

    def workers(work: Any, given: Any) -> Any:
        return on_workers(work, given, at_once=2)

    assert run_hook(store, hook, workers=workers) == HookCounts(recordings=2, failed=1)
    other, _, talk = rows(store, "deadly")
    assert other["length"] == 10
    assert (talk["error_kind"], talk["length"]) == (DIED, None)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        (f"{HERE}:absent", "has no attribute 'absent'"),
        (f"{HERE}:NO_FUNCTION", "found 3, expected a function"),
        (f"{HERE}:deadly", r"found the signature .*bad: str.*missing a required argument: 'bad'"),
        (f"{HERE}:Loaded", "expected to take its options"),
        ("pathlib:Path", "no __call__ of its objects"),
    ],
)
def test_a_function_that_is_not_there_is_refused(function: str, expected: str):
    hook = HookSettings(name="h", function=function, columns={"a": "string"})
    config = run_config("/in", "/out", hooks=[hook])
    with pytest.raises(ConfigError, match=expected):
        check_hooks(config)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "Bad-Name"}, "pattern"),
        ({"columns": {"a": "text"}}, "found the type 'text' of a"),
        ({"columns": {"made_of": "string"}}, "found made_of in the columns"),
        ({"columns": {"start_s": "float64"}}, "found start_s in the columns"),
        ({"columns": {"A b": "string"}}, "found a column 'A b'"),
        ({"columns": {}}, "at least 1 item"),
        ({"function": "no_colon"}, "pattern"),
    ],
)
def test_settings_that_name_no_table_are_refused(values: dict[str, Any], expected: str):
    usual = {"name": "h", "function": "m:f", "columns": {"a": "string"}}
    with pytest.raises(ValidationError, match=expected):
        HookSettings.model_validate(usual | values)


def test_a_table_that_is_not_there_is_named(store: OutputStore):
    run_hook(store, REDACT)
    with pytest.raises(ConfigError, match=r"found the tables of redact, expected one of that name"):
        list(read_rows(store, "redacted"))
