"""What people wrote and what a recording says stay with its sound, whatever its address is."""

import os
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.edits.corrections import Corrections
from corpus_asr.export.speakers import read_names
from corpus_asr.storage.run_state.annotations import NAMES_NAME
from corpus_asr.storage.run_state.forget import (
    allow_again,
    find_recordings,
    forget,
    forget_returned,
)
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.plan import make_plan
from tests.support.audio import wav_of
from tests.support.runs import REVISION, ManualRun, correct_segment
from tests.support.tables import complete, digest_of

pytestmark = pytest.mark.long
SOUNDS = ("rec.0.wav", "rec.1.wav", "rec.2.wav")


def put(job: ManualRun, name: str, sound: str, mtime: float) -> None:
    (job.source / name).write_bytes(wav_of(sound))
    os.utime(job.source / name, (mtime, mtime))


def written(job: ManualRun) -> dict[str, set[str]]:
    """Return what people wrote, by the name of the present file."""
    identities, corrections = Identities.read(job.store), Corrections.load(job.store)
    names = read_names(job.store)
    found: dict[str, set[str]] = {}
    for name in (path.name for path in job.source.iterdir()):
        own = identities.id_of(str(job.source / name))
        texts = {correction.text for correction in corrections.of(own)}
        found[name] = texts | {who for (recording, _), who in names.items() if recording == own}
    return {name: words for name, words in found.items() if words}


@pytest.fixture
def job(tmp_path: Path) -> ManualRun:
    """A ring of recordings, the second of which people worked on."""
    job = ManualRun(tmp_path, ())
    for number, name in enumerate(SOUNDS):
        put(job, name, f"sound {number}", 100.0 * number)
    job.begin()
    for name in SOUNDS:
        segment: dict[str, Any] = {"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": name}
        job.commit(name, segments=[segment])
    job.finish()
    correct_segment(job.store, "rec.1.wav", "corrected")
    names = f"uri,speaker,name\n{job.source / 'rec.1.wav'},S1,Anna\n"
    job.store.write_bytes(NAMES_NAME, names.encode())
    assert written(job) == {"rec.1.wav": {"corrected", "Anna"}}
    return job


def rotate(job: ManualRun, sound: str, mtime: float) -> None:
    (job.source / "rec.2.wav").unlink()
    (job.source / "rec.1.wav").rename(job.source / "rec.2.wav")
    (job.source / "rec.0.wav").rename(job.source / "rec.1.wav")
    put(job, "rec.0.wav", sound, mtime)


def night(job: ManualRun, *new: str) -> None:
    job.begin()
    assert job.plan.num_remaining == len(new)
    for name in new:
        job.commit(name)
    job.finish()


def test_what_people_wrote_follows_files_that_rotate(job: ManualRun) -> None:
    rotate(job, "sound 3", 300.0)
    night(job, "rec.0.wav")
    assert written(job) == {"rec.2.wav": {"corrected", "Anna"}}
    night(job)
    rotate(job, "sound 4", 400.0)
    night(job, "rec.0.wav")
    assert written(job) == {}
    put(job, "back.wav", "sound 1", 500.0)
    night(job)
    assert written(job) == {"back.wav": {"corrected", "Anna"}}


def test_a_rotation_killed_before_its_ids_are_saved_is_done_again(
    job: ManualRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate(job, "sound 3", 300.0)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Identities, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            job.begin()
    night(job, "rec.0.wav")
    assert written(job) == {"rec.2.wav": {"corrected", "Anna"}}


def test_files_that_change_names_keep_what_people_wrote(job: ManualRun) -> None:
    (job.source / "rec.0.wav").rename(job.source / "x.wav")
    (job.source / "rec.1.wav").rename(job.source / "rec.0.wav")
    (job.source / "x.wav").rename(job.source / "rec.1.wav")
    night(job)
    assert written(job) == {"rec.0.wav": {"corrected", "Anna"}}


def test_what_people_wrote_waits_while_its_sound_is_nowhere(job: ManualRun) -> None:
    put(job, "rec.1.wav", "other", 900.0)
    job.begin()
    assert any("wait" in words for words in job.plan.notes())
    job.commit("rec.1.wav")
    job.finish()
    assert written(job) == {}
    night(job)
    put(job, "rec.1.wav", "sound 1", 950.0)
    night(job)
    assert written(job) == {"rec.1.wav": {"corrected", "Anna"}}


def test_a_file_with_other_tags_or_another_time_is_not_transcribed_again(job: ManualRun) -> None:
    os.utime(job.source / "rec.0.wav", (7, 7))
    path = job.source / "rec.1.wav"
    path.write_bytes(path.read_bytes() + b"LIST\x0c\x00\x00\x00INFOICMT\0\0\0\0")
    night(job)
    night(job)
    assert written(job) == {"rec.1.wav": {"corrected", "Anna"}}


def test_another_sound_at_an_erased_address_is_transcribed(job: ManualRun) -> None:
    uri = str(job.source / "rec.1.wav")
    forget(job.store, {Identities.read(job.store).id_of(uri): uri})
    plan = make_plan(job.config, job.store, model_revision=REVISION)
    assert (plan.num_forgotten, plan.num_remaining) == (1, 0)
    assert any("--allow-again" in words for words in plan.notes())
    put(job, "rec.1.wav", "other", 900.0)
    night(job, "rec.1.wav")
    night(job)
    put(job, "again.wav", "sound 1", 950.0)
    night(job)


def test_an_erased_sound_of_another_name_and_size_is_erased_when_it_is_read(
    job: ManualRun,
) -> None:
    uri = str(job.source / "rec.1.wav")
    recording = Identities.read(job.store).id_of(uri)
    forget(job.store, {recording: uri})
    (job.source / "rec.1.wav").unlink()
    put(job, "again.wav", "sound 1", 900.0)
    path = job.source / "again.wav"
    path.write_bytes(path.read_bytes() + b"LIST\x0c\x00\x00\x00INFOICMT\0\0\0\0")
    job.begin()
    job.commit("again.wav", last_part=False)
    job.commit("again.wav", part=1)
    assert forget_returned(job.store) == 1
    job.finish()
    assert forget_returned(job.store) == 0
    assert "again.wav" not in {Path(row["uri"]).name for row in complete(job.store)}
    again = make_plan(job.config, job.store, model_revision=REVISION)
    assert (again.num_forgotten, again.num_remaining) == (1, 0)
    allow_again(job.store, [uri])
    assert not Forgotten.read(job.store).has_content(str(digest_of(str(path))))


def test_an_address_erases_what_waits_there_for_its_sound(job: ManualRun) -> None:
    put(job, "rec.1.wav", "other", 900.0)
    night(job, "rec.1.wav")
    uri = str(job.source / "rec.1.wav")
    found = find_recordings(job.store, [uri])
    assert found.corrections == 1
