"""Erasing recordings: nothing in the folder names them, and later runs leave them out."""

import copy
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import archive
from corpus_asr.cli import main as cli
from corpus_asr.edits.corrections import read_saved
from corpus_asr.errors import FetchError
from corpus_asr.export.speakers import find_speakers
from corpus_asr.report.page import write_page_at_the_end
from corpus_asr.report.run import load_report
from corpus_asr.schemas import DUPLICATES, SPEAKERS, VOICES
from corpus_asr.storage.run_state import forget as forgetting
from corpus_asr.storage.run_state.annotations import NAMES_NAME
from corpus_asr.storage.run_state.forget import forget_voices
from corpus_asr.storage.run_state.forgotten import FORGOTTEN_NAME
from corpus_asr.storage.run_state.lock import CHANGE_NAME, LOCK_NAME, SUCCESS_NAME, Lock
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.rewriting import (
    FAILING_NAME,
)
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from corpus_asr.storage.run_state.run_tables import REDO
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import recording_id
from tests.support.audio import wav_of
from tests.support.runs import (
    REVISION,
    ManualRun,
    correct_segment,
    says,
)
from tests.support.stores import life
from tests.support.tables import (
    commit,
    digest_of,
    held_by,
    orphan,
    part,
    results,
    rows_of,
    stored_segments,
)

pytestmark = pytest.mark.long

SECRET = "Quillfeather owes me nine pounds"
CORRECTED = "Quillfeather owes me ninety pounds"
# Moments of a command: a soak tries all of them.
EACH = pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 9])


def segment(text: str) -> dict[str, Any]:
    return {"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": text, "confidence": 0.4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ManualRun, Path]:
    """A folder with every feature in use, and a copy of it; `ada.wav` is to be forgotten."""
    folder = tmp_path_factory.mktemp("made") / "job"
    folder.mkdir()
    job = ManualRun(folder, ["ada.wav", "b.wav", "c.wav", "broken.wav"])
    job.begin()
    job.commit("ada.wav", segments=[segment(SECRET)])
    job.commit("b.wav", segments=[segment("Other words")])
    job.fail("broken.wav")
    job.finish()
    write_page_at_the_end(job.store, 3)
    job.begin()
    job.commit("c.wav", segments=[segment("More words")])
    uri = str(job.source / "ada.wav")
    correct_segment(job.store, SECRET, CORRECTED)
    for name in ("ada.wav", "b.wav"):
        says(job.store, str(job.source / name), (0.0, 1.0, "S1"))
    job.store.write_bytes(
        NAMES_NAME, f"uri,speaker,name\n{uri},S1,Ada\n{job.source / 'b.wav'},S1,Bo\n".encode()
    )
    orphan(job.store, part("", 0, texts=[SECRET], uri=uri))
    named = pq.read_table(job.store.address(job.store.names("recordings")[0]))
    job.store.write_table(FAILING_NAME, named.select(["recording_id", "uri", "etag", "size_bytes"]))
    job.store.write_json("_run/datasets/x.json", {"uri": "s3://sets/one"})
    examples = [{"uri": uri, "message": f"reading {uri}"}, {"uri": "/b.wav", "message": ""}]
    job.store.write_json(
        "nights/2026-01-01.json",
        {"findings": {"failures": [{"kind": "x", "examples": examples}]},
         "no_longer_retried": [uri], "error": f"reading {uri}: no"},
    )  # fmt: skip
    escaped = uri.replace("_", "\\_")
    job.store.write_bytes("nights/2026-01-01.md", f"# Night\n\n- {escaped}: broken\n".encode())
    job.store.write_json("nights/2026-01-02.json", {"error": None})
    job.store.write_bytes("nights/2026-01-02.md", b"# Another night")
    job.store.write_json("_run/progress.json", {"failures": [{"examples": [uri, "/b.wav"]}]})
    job.store.write_json("evaluation.json", {"worst": [{"uri": uri, "text": SECRET}]})
    (Path(job.store.uri) / f".tmp-{0:032x}").write_bytes(SECRET.encode())
    job.finish()
    # A newer version of which a part waits for the others, and a redo that is under way.
    Path(uri).write_bytes(b"newer")
    job.begin()
    job.commit("ada.wav", segments=[segment(f"{SECRET}, now")], last_part=False)
    job.finish()
    assert job.store.names("_run/commits")
    redo = {"recording_id": recording_id(uri), "begun_by": "x"}
    note_redo(job.store, pa.Table.from_pylist([redo], REDO))
    write_page_at_the_end(job.store, 4)
    return job, Path(shutil.copytree(folder, folder.with_name("copy")))


@pytest.fixture
def job(made: tuple[ManualRun, Path]) -> ManualRun:
    """That folder as it was made: at its first place, since its rows name it."""
    job, whole = copy.copy(made[0]), made[1]
    folder = job.source.parent
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    job.store = OutputStore(job.config.output.uri)
    return job


def naming(job: ManualRun) -> list[str]:
    """Return the files that still say anything of the recording."""
    uri = str(job.source / "ada.wav")
    needles = [word.encode() for word in ("ada.wav", uri, recording_id(uri), "Quillfeather", "Ada")]
    return [name for name, data in held_by(job.store.uri).items()
            if any(needle in data for needle in needles)]  # fmt: skip


def rows_seen(store: OutputStore) -> dict[str, list[str]]:
    """Return what any reader of Parquet finds in each table."""
    rows: dict[str, list[str]] = {}
    for path in sorted(Path(store.uri).rglob("*")):
        table = str(path.parent.relative_to(store.uri))
        if path.suffix in {".parquet", ".rows"} and not table.startswith("_run/plan"):
            rows.setdefault(table, []).extend(
                str(row) for row in pq.read_table(path, partitioning=None).to_pylist()
            )
    return {table: sorted(own) for table, own in rows.items()}


def command(job: ManualRun, *words: str) -> Result:
    name, *options = words
    return CliRunner().invoke(cli.app, [name, job.store.uri, *options])


def test_no_byte_of_the_folder_names_what_was_forgotten(job: ManualRun) -> None:
    assert len(naming(job)) > 12, "the test sees what is there"
    before = held_by(job.store.uri)
    shown = command(job, "remove", "--uri", "*/ada.wav")
    assert shown.exit_code == 0, shown.output
    assert f"{job.source}/ada.wav\n" in shown.stdout
    assert "1 recording, 2 segments, 1 correction; nothing was changed" in shown.stdout
    assert "s3://sets/one; remove it and write it again: corpus-asr label" in shown.stdout
    assert "earlier object versions" in shown.stdout
    assert held_by(job.store.uri) == before
    done = command(job, "remove", "--uri", "*/ada.wav", "--yes")
    assert done.exit_code == 0, done.output
    assert naming(job) == []
    texts = sorted(row["text"] for row in rows_of(stored_segments(job.store)))
    assert texts == ["More words", "Other words"]
    assert Path(job.store.address(NAMES_NAME)).read_text().count("Bo") == 1
    assert (Path(job.store.uri) / "report.html").exists()
    assert job.store.read_json("nights/2026-01-01.json")["findings"]["failures"][0]["examples"] == [
        {"uri": "/b.wav", "message": ""}
    ]
    nights = ["2026-01-01.json", "2026-01-02.json", "2026-01-02.md"]
    assert sorted(os.listdir(job.store.address("nights"))) == nights
    assert "may name them" not in done.stdout
    report = load_report(job.store)
    assert (report.accounting.problems, report.accounting.listed) == ((), 3)
    assert job.store.read_json("run.json")["counts"]["listed"] == 3
    assert not job.store.exists(LOCK_NAME)


def test_it_stays_away_also_under_another_name_until_it_is_allowed_again(job: ManualRun) -> None:
    uri = str(job.source / "ada.wav")
    assert command(job, "remove", "--uri", uri, "--yes").exit_code == 0
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_forgotten, plan.num_files, plan.num_remaining) == (1, 3, 0)
    glob = command(job, "remove", "--uri", "*/ada.wav", "--allow-again")
    assert glob.exit_code == 2
    assert "expected whole URIs" in glob.stderr
    both = command(job, "remove", "--uri", uri, "--uri", "/none.wav", "--allow-again")
    assert both.exit_code == 2
    assert "found /none.wav not among erased recordings" in both.stderr
    allowed = command(job, "remove", "--uri", uri, "--allow-again")
    assert allowed.exit_code == 0, allowed.output
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_forgotten, plan.num_new) == (0, 1)


def test_by_its_content_another_file_of_its_size_and_time_is_done(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ())

    def put(name: str, content: str, mtime_s: float = 0.0) -> None:
        (job.source / name).write_bytes(wav_of(content))
        os.utime(job.source / name, (mtime_s, mtime_s))

    put("mon.wav", "monday")
    put("kept.wav", "always")
    job.begin()
    job.commit("mon.wav")
    job.commit("kept.wav")
    job.finish()
    digest = digest_of(str(job.source / "mon.wav"))
    assert command(job, "remove", "--uri", "*/mon.wav", "--yes").exit_code == 0
    assert str(digest) not in Path(job.store.address(FORGOTTEN_NAME)).read_text()

    def planned() -> tuple[int, int]:
        plan = make_plan(job.config, job.store, model_revision=REVISION)
        return plan.num_forgotten, plan.num_new

    (job.source / "mon.wav").unlink()
    put("tue.wav", "tuesdy")
    assert planned() == (0, 1)
    put("moved and touched.wav", "monday", 2.0)
    assert planned() == (1, 1)
    put("kept.wav", "monday", 3.0)
    assert planned() == (2, 1)


def test_what_is_not_there_is_answered_with_what_is_like_it(job: ManualRun) -> None:
    found = command(job, "remove", "--uri", "*/adda.wav", "--yes")
    assert found.exit_code == 2
    assert "found none of */adda.wav, expected a URI or a glob" in found.stderr
    assert f"did you mean {job.source}/ada.wav" in found.stderr


def test_a_folder_in_use_is_left_alone(job: ManualRun) -> None:
    with Lock(OutputStore(job.store.uri), "other"):
        for words in (("remove", "--uri", "*/ada.wav"), ("remove", "--gone", "--older-than", "0d")):
            (job.source / "c.wav").unlink(missing_ok=True)
            refused = command(job, *words, "--yes")
            if "--uri" in words:
                assert refused.exit_code == 2
                assert "found it in use by run other" in refused.stderr
    assert len(naming(job)) > 15


def test_a_store_that_removes_nothing_is_left_as_it_is(
    job: ManualRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, *_: Any) -> None:
        raise FetchError(f"removing {uri}: 403", uri=uri, kind="access_denied")

    before = held_by(job.store.uri)
    with monkeypatch.context() as patches:
        patches.setattr(filesystem, "remove", refuse)
        refused = command(job, "remove", "--uri", "*/ada.wav", "--yes")
    assert refused.exit_code == 2
    assert "_run/removable.json: 403" in refused.stderr
    after = held_by(job.store.uri)
    after.pop("_run/removable.json")
    assert after == before


def test_files_of_others_are_left_as_they_are_and_their_places_named(job: ManualRun) -> None:
    output, uri = Path(job.store.uri), str(job.source / "ada.wav")
    others = ["notes.txt", "exports/ada.srt", "exports/deep/ada.vtt", "nights/ada.txt"]
    others += ["inner/_run/config.json", "inner/run.json", "odd.json", "odd.parquet"]
    for name in others:
        job.store.write_bytes(name, f"see {uri}".encode())
    done = command(job, "remove", "--uri", "*/ada.wav", "--yes")
    assert done.exit_code == 0, done.output
    places = ", ".join(f"{output}/{name}" for name in ("exports/", "inner/", "nights/"))
    places += f", {output}/notes.txt, {output}/odd.json and 1 more"
    assert done.stdout.endswith(f"not erased, and may name them: {places}\n")
    assert {(output / name).read_text() for name in others} == {f"see {uri}"}
    (output / "odd.parquet").unlink()  # no Parquet, for the test either
    assert sorted(naming(job)) == sorted({*others} - {"odd.parquet"})


def test_an_address_is_no_glob_and_each_pattern_has_to_match(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["talk[1].wav", "talk1.wav"])
    job.begin()
    for name in ("talk[1].wav", "talk1.wav"):
        job.commit(name)
    job.finish()
    one = f"{job.source}/talk[1].wav"
    wrong = command(job, "remove", "--uri", one, "--uri", "*/tolk1.wav", "--yes")
    assert wrong.exit_code == 2
    assert "found none of */tolk1.wav, expected" in wrong.stderr
    assert "did you mean" in wrong.stderr
    assert command(job, "remove", "--uri", one, "--yes").exit_code == 0
    assert {Path(row["uri"]).name for row in rows_of(stored_segments(job.store))} == {"talk1.wav"}


def test_what_it_was_called_before_it_moved_is_erased_too(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, ["quill.wav", "b.wav"])
    first, uri = str(job.source / "quill.wav"), str(job.source / "ada.wav")
    job.begin()
    job.commit("quill.wav", segments=[segment(SECRET)])
    job.commit("b.wav")
    job.finish()
    job.store.write_json("nights/2026-01-01.json", {"least_sure": [{"uri": first, "audio_s": 1}]})
    for old, new in (("quill.wav", "middlename.wav"), ("middlename.wav", "ada.wav")):
        (job.source / old).rename(job.source / new)
        job.begin()
        job.finish()
    assert [row["uri"] for row in rows_of(job.store.recordings())].count(uri) == 1
    assert command(job, "remove", "--uri", uri, "--yes").exit_code == 0
    needles = ("quill", "middlename", "ada.wav", "Quillfeather", recording_id(first))
    assert [(each, needle) for each, data in held_by(job.store.uri).items()
            for needle in needles if needle.encode() in data] == []  # fmt: skip


@EACH
@pytest.mark.parametrize("words", [
    ("remove", "--uri", "*/ada.wav"), ("remove", "--speaker", "Bo"),
    ("remove", "--gone", "--with-corrections"),
])  # fmt: skip
def test_killed_anywhere_it_is_continued(
    voiced: ManualRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    step: int,
) -> None:
    """Before: rows twice and pruned texts in the tables, for good, with "nothing to remove"."""
    job = voiced
    job.begin()
    if "--gone" in words:
        (job.source / "ada.wav").unlink()
        job.begin()
    else:
        job.commit("ada.wav", part=1, segments=[segment(SECRET)])
    job.finish()
    pair = {
        "recording_id": recording_id(str(job.source / "b.wav")),
        "uri": "/b.wav",
        "other_recording_id": recording_id(str(job.source / "c.wav")),
        "other_uri": "/c.wav",
    }
    of_ada = {**pair, "recording_id": recording_id(str(job.source / "ada.wav")), "uri": "/a.wav"}
    pairs = pa.Table.from_pylist([pair, of_ada], DUPLICATES)
    job.store.write_table("duplicates/1.parquet", pairs)
    whole = job.store.uri
    job.store = OutputStore(str(shutil.copytree(whole, tmp_path / "undisturbed")))
    assert command(job, *words, "--yes").exit_code == 0
    expected = rows_seen(job.store)
    assert job.store.exists(SUCCESS_NAME)
    if "--speaker" not in words:
        page = Path(job.store.address(PAGE_NAME)).read_text()
        assert "Finished" in page
        assert "Stopped before the end" not in page
    monkeypatch.setattr(archive, "_write_page", lambda store: None)  # half of the time
    for moment in itertools.count(1, step):
        job.store = OutputStore(str(shutil.copytree(whole, tmp_path / f"killed-{moment}")))
        with life(moment) as process:
            command(job, *words, "--yes")
        if not process.killed:
            break
        job.store.remove(LOCK_NAME)  # its process, the test's, lives on
        texts = {row["text"] for row in rows_of(stored_segments(job.store))}
        assert texts >= {"More words", "Other words"}
        begun = job.store.exists(CHANGE_NAME)
        assert begun or job.store.exists(SUCCESS_NAME)
        if moment % 2 and begun:
            forgetting.finish_killed(job.store)
        else:
            again = command(job, *words, "--yes")
            assert again.exit_code == 0 or not begun, again.output
        assert rows_seen(job.store) == expected, moment
        assert job.store.exists(SUCCESS_NAME)
        assert not job.store.exists(CHANGE_NAME)
        if "--uri" in words:
            assert naming(job) == []
            assert job.store.exists(FORGOTTEN_NAME)
        if "--speaker" in words:
            assert speaking(job.store) == []
    assert moment > 10


def said(rows: str, text: str) -> dict[str, Any]:
    """Return segments or labels, and no others, of what a part says."""
    label = {"window": 0, "rank": 1, "label": text, "start_s": 0.0, "end_s": 1.0}
    return {"segments": None, rows: [segment(text) if rows == "segments" else label]}


def planted(job: ManualRun, rows: str) -> Path:
    """Plant what `ada.wav` is, is called and says in every other kind of file; return a folder.

    There are summaries of nights, outside of the output folder.
    """
    uri, other = (str(job.source / name) for name in ("ada.wav", "b.wav"))
    ids, store = [recording_id(uri), recording_id(other)], job.store
    texts = ((uri, SECRET), (other, "Waiting"))
    parts = [part("", 7, texts=None, last=False, uri=of, **said(rows, text)) for of, text in texts]
    commit(store, results(*parts))
    table = pa.table({"recording_id": ids, "uri": [uri, other], "said": [[SECRET], ["x"]]})
    for name in ("hooks/mine/1.parquet", "exports/all.parquet", "_run/new_wing.rows"):
        store.write_table(name, table)
    store.write_table("_run/plan/1/packs/0.rows", pa.table({"files": [[{"uri": uri}]]}))
    row = {"recording_id": ids[0], "uri": uri, "speaker": "S1", "voice": "V1"}
    store.write_table("voices/1.parquet", pa.Table.from_pylist([row], VOICES))
    pair = {"recording_id": ids[1], "uri": other, "other_recording_id": ids[0], "other_uri": uri}
    store.write_table("duplicates/1.parquet", pa.Table.from_pylist([pair], DUPLICATES))
    elsewhere = job.source.parent / "summaries"
    config = store.read_json("_run/config.json") | {"nightly": {"summaries": str(elsewhere)}}
    store.write_json("_run/config.json", config | {"source": {"uri": [uri]}})
    night = {"worst": {"uri": uri, "text": SECRET}, "by_id": {ids[0]: SECRET}, "audio_s": 1.5}
    for folder in (store, OutputStore(str(elsewhere))):
        name = "nights/2026-01-03" if folder is store else "2026-01-03"
        folder.write_json(f"{name}.json", night)
        folder.write_bytes(f"{name}.md", f"{uri}: {SECRET}".encode())
    store.write_json("_run/history/9.json", {"examples": [{"uri": uri, "said": SECRET}, uri]})
    lines = [{"audio_filepath": uri, "text": SECRET}, {"audio_filepath": other, "text": "y"}, {}]
    store.write_bytes("exports/all.jsonl", "\n".join(map(json.dumps, lines)).encode())
    store.write_json("exports/ada.json", {"id": ids[0], "segments": [{"text": SECRET}]})
    store.write_bytes("report.failures.csv", uri.encode())
    return elsewhere


@EACH
@pytest.mark.parametrize("rows", ["segments", "labels"])
def test_whatever_kind_of_file_names_it_is_walked_and_no_kill_leaves_a_byte(
    request: pytest.FixtureRequest, tmp_path: Path, rows: str, step: int
) -> None:
    """Before: files of wings that no list named stayed, and rows of a shared commit were double."""
    if rows == "segments":
        job: ManualRun = request.getfixturevalue("voiced")
    else:
        job = ManualRun(tmp_path, ["ada.wav", "b.wav"], pipeline="classify_audio")
        job.begin()
        for name, label in (("ada.wav", SECRET), ("b.wav", "music")):
            job.commit(name, **said(rows, label))
        job.finish()
    elsewhere, uri = planted(job, rows), str(job.source / "ada.wav")
    recordings = {recording_id(uri): uri}
    at_first = shutil.copytree(job.source.parent, tmp_path / "at_first")

    def erase(moment: float) -> bool:
        for folder in (job.store.uri, str(elsewhere)):
            shutil.rmtree(folder)
            shutil.copytree(at_first / Path(folder).name, folder)
        with life(moment) as process, Lock(OutputStore(job.store.uri), "first") as lock:
            assert forgetting.forget(lock.store, recordings) == []
        OutputStore(job.store.uri).remove(LOCK_NAME)  # its process, the test's, lives on
        if process.killed:
            with Lock(OutputStore(job.store.uri), "second") as lock:
                begun = lock.store.exists(CHANGE_NAME)
                forgetting.finish_killed(lock.store)
                if not begun:
                    forgetting.forget(lock.store, recordings)
        job.store = OutputStore(job.store.uri)
        return process.killed

    assert not erase(float("inf"))
    expected = rows_seen(job.store)
    assert {len(expected[name]) for name in ("hooks/mine", "exports")} == {1}
    assert not {row for name in expected for row in expected[name] if "Quill" in row}
    assert b'"audio_s": 1.5' in (elsewhere / "2026-01-03.json").read_bytes()
    assert Path(job.store.address("exports/all.jsonl")).read_text().count('"y"}\n{}') == 1
    for moment in itertools.count(1, step):
        killed = erase(moment)
        left = held_by(str(elsewhere))
        assert naming(job) + [name for name in left if b"Quill" in left[name]] == [], moment
        assert rows_seen(job.store) == expected, moment
        if not killed:
            break
    assert moment > 20


@pytest.fixture
def voiced(job: ManualRun) -> ManualRun:
    """The folder with a voice of `b.wav`, which is Bo's."""
    uri = str(job.source / "b.wav")
    spans = [{"start_s": 0.0, "end_s": 0.9}, {"start_s": 5.0, "end_s": 6.0}]
    job.commit("b.wav", segments=[segment("Said")], voice_spans=spans, voices=b"B0B0OTHR")
    for name in job.store.names("speakers"):
        rows = job.store.read_table(name, SPEAKERS).to_pylist()
        turns = [row | {"embedding": b"B0EM"} for row in rows]
        job.store.write_table(name, pa.Table.from_pylist(turns, SPEAKERS))
    voices = [{"recording_id": recording_id(uri), "uri": uri, "speaker": "S1", "voice": "V1"}]
    job.store.write_table("voices/1.parquet", pa.Table.from_pylist(voices, VOICES))
    return job


def speaking(store: OutputStore) -> list[Any]:
    """Return the files that still say how Bo sounds or is called."""
    of_bo = [row for name in store.names("speakers")
             for row in store.read_table(name, SPEAKERS).to_pylist()
             if row["uri"].endswith("/b.wav") and row["embedding"]]  # fmt: skip
    assert len(of_bo) < 2
    said = (b",Bo\n", b"B0B0", b"'V1'")
    files = held_by(store.uri).items()
    return [name for name, data in files if any(each in data for each in said)] + of_bo


def test_a_voice_is_forgotten_and_what_it_says_stays(voiced: ManualRun) -> None:
    job = voiced
    uri = str(job.source / "b.wav")
    assert len(speaking(job.store)) > 3
    wrong = command(job, "remove", "--speaker", "Boo", "--yes")
    assert wrong.exit_code == 2
    assert "found no Boo" in wrong.stderr
    assert "did you mean Bo?" in wrong.stderr
    shown = command(job, "remove", "--speaker", "Bo")
    assert "Bo, in 1 recording; nothing was changed" in shown.stdout
    (Path(job.store.uri) / f".tmp-{0:032x}").write_bytes(b"x,S1,Bo\n")
    again = command(job, "remove", "--speaker", "Bo", "--allow-again", "--yes")
    assert again.exit_code == 2
    assert "--allow-again needs --uri" in again.stderr
    assert "s3://sets/one; remove it and write it again" in shown.stdout
    done = command(job, "remove", "--speaker", "Bo", "--yes")
    assert done.exit_code == 0, done.output
    assert Path(job.store.address(NAMES_NAME)).read_text().endswith(",Ada\n")
    turns = [row for name in job.store.names("speakers")
             for row in job.store.read_table(name, SPEAKERS).to_pylist()]  # fmt: skip
    assert {row["embedding"] for row in turns if row["uri"] == uri} == {None}
    assert sum(row["voices"] == b"OTHR" for row in rows_of(job.store.outcomes())) == 1
    assert speaking(job.store) == []
    [voices_name] = job.store.names("voices")
    assert job.store.read_table(voices_name, VOICES).num_rows == 0
    assert "Said" in {row["text"] for row in rows_of(stored_segments(job.store))}


@EACH
def test_a_name_that_only_corrections_have_is_forgotten(
    voiced: ManualRun, tmp_path: Path, step: int
) -> None:
    correct_segment(voiced.store, "Said", "Corrected", speaker="Grace")
    correct_segment(voiced.store, "More words", "Corrected", speaker="Grace")
    correct_segment(voiced.store, "More words", "Corrected", speaker="S1")  # no such turn there
    correct_segment(voiced.store, SECRET, "Corrected", speaker="S1")  # whom Ada is
    wrong = command(voiced, "remove", "--speaker", "Gracie", "--yes")
    assert "did you mean Grace?" in wrong.stderr
    shown = command(voiced, "remove", "--speaker", "Grace")
    assert "Grace, in 2 recordings; nothing was changed" in shown.stdout
    before = speaking(voiced.store)
    speakers = find_speakers(voiced.store, ["Grace"])
    for moment in itertools.count(1, step):
        shutil.copytree(voiced.store.uri, tmp_path / str(moment))
        store = OutputStore(str(tmp_path / str(moment)))
        with life(moment) as process:
            forget_voices(store, speakers, ["Grace"])
        if process.killed:
            forgetting.finish_killed(store)
        assert [name for name, data in held_by(store.uri).items() if b"Grace" in data] == []
        saved = [each.segments[0].speaker for each in read_saved(store).values()]
        assert sorted(map(str, saved)) == ["None"] * 3 + ["S1"] * 2
        assert len(speaking(store)) == len(before), "of others nothing is erased"
        if not process.killed:
            break
    assert moment > 3


def test_numbers_of_speakers_and_files_of_others_in_corrections_stay(voiced: ManualRun) -> None:
    store = voiced.store
    correct_segment(store, "Said", "Corrected", speaker="Grace")
    correct_segment(store, "More words", "Corrected", speaker="S1")  # no such turn there
    correct_segment(store, SECRET, "Corrected", speaker="S1")
    folder = Path(store.address(next(iter(read_saved(store))))).parent
    (folder / "NOTES.md").write_text("of others")
    (folder / f".tmp-{0:032x}").write_text('{"segments": [{"speaker": "Grace')
    refused = command(voiced, "remove", "--speaker", "S1", "--yes")
    assert "found no S1, expected a name in speakers.csv or in a correction" in (refused.stderr)
    done = command(voiced, "remove", "--speaker", "Grace", "--yes")
    assert done.exit_code == 0, done.output
    said = [each.segments[0].speaker for each in read_saved(store).values()]
    assert sorted(map(str, said)) == ["None", "None", "S1", "S1"]
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == ["NOTES.md"]
