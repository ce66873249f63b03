"""Erasing recordings: nothing in the folder names them, and later runs leave them out."""

import datetime
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.errors import FetchError
from corpus_asr.report.html.page import write_page_at_the_end
from corpus_asr.report.run import load_report
from corpus_asr.schemas import SPEAKERS, VOICES
from corpus_asr.storage.run_state import forget as forgetting
from corpus_asr.storage.run_state.forgotten import FORGOTTEN_NAME
from corpus_asr.storage.run_state.lock import LOCK_NAME, Lock
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.rewriting import FAILING_NAME, NAMES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import recording_id
from tests.support.runs import REVISION, ManualRun, correct_segment, says
from tests.support.stores import life
from tests.support.tables import orphan, part, rows_of

SECRET = "Quillfeather owes me nine pounds"
CORRECTED = "Quillfeather owes me ninety pounds"


def segment(text: str) -> dict[str, Any]:
    return {"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": text, "confidence": 0.4}


@pytest.fixture
def job(tmp_path: Path) -> ManualRun:
    """A folder with every feature in use; `ada.wav` is to be forgotten."""
    job = ManualRun(tmp_path, ["ada.wav", "b.wav", "c.wav", "broken.wav"])
    job.begin()
    job.commit("ada.wav", segments=[segment(SECRET)])
    job.commit("b.wav", segments=[segment("Other words")])
    job.fail("broken.wav")
    job.finish()
    write_page_at_the_end(job.store, 3)
    earlier = "_earlier/before-20260101T000000Z-abcdef"
    names = [name for folder in ("outcomes", "segments", "recordings", "_run/plan")
             for name in job.store.all_names(folder)]  # fmt: skip
    for name in [*names, "report.html", "run.json", "_run/config.json"]:
        data = filesystem.read_bytes(job.store.address(name))
        job.store.write_bytes(f"{earlier}/{name}", data)
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
    job.store.write_table("_run/deaths/x.parquet", named.select(["recording_id", "uri"]))
    job.store.write_json("_run/datasets/x.json", {"uri": "s3://sets/one"})
    examples = [{"uri": uri, "message": f"reading {uri}"}, {"uri": "/b.wav", "message": ""}]
    job.store.write_json(
        "nights/2026-01-01.json",
        {"findings": {"failures": [{"kind": "x", "examples": examples}]},
         "no_longer_retried": [uri], "error": f"reading {uri}: no"},
    )  # fmt: skip
    escaped = uri.replace("_", "\\_")
    job.store.write_bytes("nights/2026-01-01.md", f"# Night\n\n- {escaped}: broken\n".encode())
    job.store.write_json("_run/progress.json", {"failures": [{"examples": [uri, "/b.wav"]}]})
    job.store.write_json("evaluation.json", {"worst": [{"uri": uri, "text": SECRET}]})
    (Path(job.store.uri) / ".tmp-x").write_bytes(SECRET.encode())
    job.finish()
    write_page_at_the_end(job.store, 4)
    return job


def held_by(folder: str) -> dict[str, bytes]:
    """Return every file with its bytes, and all values of those that are Parquet."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() else b""
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            data += repr(table.to_pylist()).encode() + str(table.schema.metadata).encode()
        found[name] = name.encode() + data
    return found


def naming(job: ManualRun) -> list[str]:
    """Return the files that still say anything of the recording."""
    uri = str(job.source / "ada.wav")
    needles = [word.encode() for word in ("ada.wav", uri, recording_id(uri), "Quillfeather", "Ada")]
    return [name for name, data in held_by(job.store.uri).items()
            if any(needle in data for needle in needles)]  # fmt: skip


def command(job: ManualRun, *words: str) -> Result:
    name, *options = words
    return CliRunner().invoke(cli.app, [name, job.store.uri, *options])


def test_no_byte_of_the_folder_names_what_was_forgotten(job: ManualRun) -> None:
    assert len(naming(job)) > 15, "the test sees what is there"
    before = held_by(job.store.uri)
    shown = command(job, "forget", "--uri", "*/ada.wav")
    assert shown.exit_code == 0, shown.output
    assert f"{job.source}/ada.wav\n" in shown.stdout
    assert "1 recording, 2 segments, 1 correction; nothing was changed" in shown.stdout
    assert "s3://sets/one; remove it and make it again: corpus-asr label" in shown.stdout
    assert "earlier versions of objects" in shown.stdout
    assert held_by(job.store.uri) == before
    done = command(job, "forget", "--uri", "*/ada.wav", "--yes")
    assert done.exit_code == 0, done.output
    assert naming(job) == []
    texts = sorted(row["text"] for row in rows_of(job.store.segments()))
    assert texts == ["More words", "Other words"]
    assert Path(job.store.address(NAMES_NAME)).read_text().count("Bo") == 1
    assert (Path(job.store.uri) / "report.html").exists()
    assert job.store.read_json("nights/2026-01-01.json")["findings"]["failures"][0]["examples"] == [
        {"uri": "/b.wav", "message": ""}
    ]
    report = load_report(job.store)
    assert (report.accounting.problems, report.accounting.listed) == ((), 3)
    assert job.store.read_json("run.json")["counts"]["listed"] == 3
    assert not job.store.exists(LOCK_NAME)


def test_it_stays_away_also_under_another_name_until_it_is_allowed_again(job: ManualRun) -> None:
    uri = str(job.source / "ada.wav")
    assert command(job, "forget", "--uri", uri, "--yes").exit_code == 0
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_forgotten, plan.num_files, plan.num_remaining) == (1, 3, 0)
    (job.source / "ada.wav").rename(job.source / "renamed.wav")
    assert make_plan(job.config, job.store, model_revision=REVISION).num_forgotten == 1
    (job.source / "renamed.wav").rename(job.source / "ada.wav")
    glob = command(job, "forget", "--uri", "*/ada.wav", "--allow-again")
    assert glob.exit_code == 2
    assert "expected whole addresses" in glob.stderr
    allowed = command(job, "forget", "--uri", uri, "--allow-again")
    assert allowed.exit_code == 0, allowed.output
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_forgotten, plan.num_new) == (0, 1)


def test_what_is_not_there_is_answered_with_what_is_like_it(job: ManualRun) -> None:
    found = command(job, "forget", "--uri", "*/adda.wav", "--yes")
    assert found.exit_code == 2
    assert "found none of */adda.wav, expected an address or a glob" in found.stderr
    assert f"did you mean {job.source}/ada.wav" in found.stderr


def test_a_folder_in_use_is_left_alone(job: ManualRun) -> None:
    with Lock(OutputStore(job.store.uri), "other"):
        for words in (("forget", "--uri", "*/ada.wav"), ("prune", "--older-than", "0d")):
            (job.source / "c.wav").unlink(missing_ok=True)
            refused = command(job, *words, "--yes")
            if words[0] == "forget":
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
        refused = command(job, "forget", "--uri", "*/ada.wav", "--yes")
    assert refused.exit_code == 2
    assert "nothing was changed, but _run/removable.json, an empty test, is left" in refused.stderr
    after = held_by(job.store.uri)
    after.pop("_run/removable.json")
    assert after == before


def test_a_file_of_others_that_names_it_is_told_and_left(job: ManualRun) -> None:
    notes = Path(job.store.uri) / "notes.txt"
    notes.write_text(f"see {job.source / 'ada.wav'}.\n")
    done = command(job, "forget", "--uri", "*/ada.wav", "--yes")
    assert f"left, as this program did not write it: {notes}\n" in done.stdout
    assert notes.exists()


@pytest.mark.parametrize("moment", [1, 4, 7, 11, 16, 22])
def test_killed_anywhere_it_is_gone_on_with(job: ManualRun, moment: int) -> None:
    found = forgetting.find_recordings(job.store, ["*/ada.wav"])
    with life(moment) as process:
        forgetting.forget(job.store, found.recordings)
    assert process.killed
    texts = {row["text"] for row in rows_of(job.store.segments())}
    assert texts - {SECRET} == {"More words", "Other words"}
    forgetting.forget(job.store, forgetting.going_on(job.store))
    assert naming(job) == []
    assert not job.store.exists(forgetting.FORGETTING_NAME)
    assert job.store.exists(FORGOTTEN_NAME)


def test_a_voice_is_forgotten_and_what_it_says_stays(job: ManualRun) -> None:
    uri = str(job.source / "b.wav")
    halves = np.arange(4, dtype="<f2").tobytes()
    spans = [{"start_s": 0.0, "end_s": 0.9}, {"start_s": 5.0, "end_s": 6.0}]
    job.commit("b.wav", segments=[segment("Said")], voice_spans=spans, voices=halves)
    [name, *_] = job.store.names("speakers")
    rows = job.store.read_table(name, SPEAKERS).to_pylist()
    job.store.write_table(
        name, pa.Table.from_pylist([row | {"embedding": b"12"} for row in rows], SPEAKERS)
    )
    voices = [{"recording_id": recording_id(uri), "uri": uri, "speaker": "S1", "voice": "V1"}]
    job.store.write_table("voices/1.parquet", pa.Table.from_pylist(voices, VOICES))
    wrong = command(job, "forget", "--speaker", "Boo", "--yes")
    assert wrong.exit_code == 2
    assert "found nobody called Boo" in wrong.stderr
    assert "did you mean Bo?" in wrong.stderr
    shown = command(job, "forget", "--speaker", "Bo")
    assert "Bo, in 1 recording; nothing was changed" in shown.stdout
    done = command(job, "forget", "--speaker", "Bo", "--yes")
    assert done.exit_code == 0, done.output
    assert Path(job.store.address(NAMES_NAME)).read_text().endswith(",Ada\n")
    turns = [row for name in job.store.names("speakers")
             for row in job.store.read_table(name, SPEAKERS).to_pylist()]  # fmt: skip
    assert {row["embedding"] for row in turns if row["uri"] == uri} == {None}
    assert sum(row["voices"] == halves[4:] for row in rows_of(job.store.outcomes())) == 1
    [voices_name] = job.store.names("voices")
    assert job.store.read_table(voices_name, VOICES).num_rows == 0
    assert "Said" in {row["text"] for row in rows_of(job.store.segments())}
    assert command(job, "forget").exit_code == 2


def test_prune_removes_what_is_gone_for_long_enough(job: ManualRun) -> None:
    (job.source / "b.wav").unlink()
    job.begin()
    job.finish()
    nothing = command(job, "prune", "--older-than", "30d", "--yes")
    assert nothing.exit_code == 0, nothing.output
    assert "nothing to remove" in nothing.stdout
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    shown = command(job, "prune")
    assert shown.stdout == (
        f"{job.source}/b.wav: 1 segment, last listed {today}\n"
        f"{job.store.uri}: 1 recording of 4 is gone; "
        "nothing was changed: --yes removes the results\n"
    )
    assert len(rows_of(job.store.segments())) == 3
    done = command(job, "prune", "--yes")
    assert done.stdout.endswith("removed 1 recording\n"), done.output
    assert {Path(row["uri"]).name for row in rows_of(job.store.segments())} == {"ada.wav", "c.wav"}
    assert load_report(job.store).accounting.problems == ()
    assert command(job, "prune", "--older-than", "soon").exit_code == 2


def test_prune_of_most_asks_for_more(job: ManualRun) -> None:
    for name in ("ada.wav", "b.wav", "c.wav"):
        (job.source / name).unlink()
    job.begin()
    job.finish()
    refused = command(job, "prune", "--yes")
    assert refused.exit_code == 2
    assert "3 recordings of 4 are gone, expected half of them at most" in refused.stderr
    assert len(rows_of(job.store.segments())) == 3
    assert command(job, "prune", "--yes", "--more-than-half").exit_code == 0
    assert rows_of(job.store.segments()) == []
    assert pq.read_table(Path(job.store.uri) / "segments").num_rows == 0
