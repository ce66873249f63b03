"""Results of `transcribe -o` as a small run for `open_run`: tables below its records.

    FOLDER/.corpus-asr/run/    tables of the recordings whose files are in FOLDER

Each recording is a commit of its own, so that nothing is lost where a call ends early; once it is
transcribed again its earlier commit is removed. Of two commits of a recording the earlier counts:
so the record of its files names all that there may be, before they are there. Rows of `recordings/`
follow for several commits at once: for one alone they take several times as long as its commit.
"""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from corpus_asr.config.options import OPTION_NAMES, sections_from, translated
from corpus_asr.config.run import ModelSettings, OutputSettings, RunConfig, SourceSettings
from corpus_asr.formats.transcript import Transcript
from corpus_asr.runtime.commit import COMMIT_EVERY_S, CommitBuffer
from corpus_asr.schemas import RESULTS, SPEAKERS
from corpus_asr.storage.parquet import BATCH_ROWS
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.own_sources import record_sources
from corpus_asr.storage.run_state.part_rows import commit_rows
from corpus_asr.storage.run_state.recording_rows import put_rows
from corpus_asr.storage.run_state.run_files import (
    CONFIG_NAME,
    FINGERPRINT_NAME,
    KEPT_RUN_FOLDER,
    fingerprint,
    result_settings,
    safe_config,
)
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.speaker_turns import RecordingVoices, turn_rows
from corpus_asr.storage.run_state.table_names import (
    COMMITS_FOLDER,
    RECORDINGS_FOLDER,
    SPEAKERS_FOLDER,
    is_commit,
    table_name,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import public, recording_id, within

Version = tuple[str | None, int | None]
"""ETag and size of a recording."""

_RUN_ID = "transcribe"
_FOLDERS = (COMMITS_FOLDER, SPEAKERS_FOLDER, RECORDINGS_FOLDER)
_COMMIT_OF = "select distinct recording_id, name from outcomes join objects using (object)"


class KeptRun:
    """Writes the run of a folder."""

    def __init__(self, folder: str, uris: Iterable[str], made_by: Mapping[str, Any]) -> None:
        """Start a new run, or continue the existing one.

        `uris` are the recordings of this call, `made_by` its model and options.
        """
        self._store = OutputStore(within(folder, KEPT_RUN_FOLDER))
        self._model, self._revision = (
            str(made_by.get(name, "")) for name in ("model", "model_revision")
        )
        # Settings tell where recordings are; those of this call are added to the record.
        source = SourceSettings(uri=tuple(map(public, uris)))
        named = translated(made_by).items()
        decoding, extract, speakers = sections_from(
            {name: value for name, value in named if name in OPTION_NAMES}
        )
        config = RunConfig(
            source=source, model=ModelSettings(checkpoint=self._model),
            output=OutputSettings(uri=folder), decoding=decoding, extract=extract,
            speakers=speakers,
        )  # fmt: skip
        # Never continued by a run, so it names no pipeline.
        sections = ("source", "model", "extract", "decoding", "speakers")
        safe = safe_config(config)
        self._store.write_json(CONFIG_NAME, {name: safe[name] for name in sections})
        settings = {
            "fingerprint": fingerprint(config, self._revision), "settings": result_settings(config)
        }  # fmt: skip
        self._store.write_json(FINGERPRINT_NAME, settings)
        record_sources(self._store, source, ())
        self._store.write_bytes(SUCCESS_NAME, b"")
        self._commits = CommitBuffer(
            self._write_recordings, max_bytes=math.inf, max_age_s=COMMIT_EVERY_S
        )
        recorded = set(map(_stem_of, self._store.all_names(RECORDINGS_FOLDER)))
        commits = filter(is_commit, self._store.commit_names())
        # Those of a killed call.
        if names := [name for name in commits if _stem_of(name) not in recorded]:
            self._write_recordings(names)

    def stem(self) -> str:
        """Return a new commit's stem, by which a later call finds it."""
        return self._store.stem()

    def keep(self, uri: str, version: Version, transcript: Transcript, *, stem: str) -> None:
        """Commit what a recording says, and who says it, under a stem."""
        own, (etag, size_bytes) = recording_id(public(uri)), version
        # Where channels were transcribed separately, each is a part.
        parts = transcript.channels or (transcript,)
        of_recording = {
            "recording_id": own, "uri": uri, "size_bytes": size_bytes, "etag": etag,
            "attempts": 1, "part_start_s": 0.0, "part_end_s": transcript.duration_s,
            "duration_s": transcript.duration_s, "audio_track": transcript.audio_track,
            "audio_tracks": list(transcript.audio_tracks) or None,
            "time_corrections": transcript.time_corrections,
        }  # fmt: skip
        rows = [
            of_recording | _part_columns(part, number, is_last=number == len(parts) - 1)
            for number, part in enumerate(parts)
        ]
        model = (transcript.model or self._model, self._revision)
        results = pa.Table.from_pylist(rows, schema=RESULTS)
        name = self._store.put_commit(commit_rows(results, run_id=_RUN_ID, model=model), stem=stem)
        if transcript.turns is not None:
            voices = RecordingVoices(recording_id=own, uri=public(uri), made_of=name)
            turns = pa.Table.from_pylist(turn_rows(voices, transcript.turns), SPEAKERS)
            put_rows(self._store, SPEAKERS_FOLDER, turns, stem=stem)
        self._commits.add(name, 0)

    def forget(self, stems: Sequence[str]) -> None:
        """Remove earlier commits of a recording."""
        names = [table_name(folder, stem) for stem in stems for folder in _FOLDERS]
        self._store.remove_all(names)

    def close(self) -> None:
        """Write the rows of `recordings/` that are missing."""
        self._commits.flush()

    def _write_recordings(self, names: list[str]) -> None:
        with RunTables(self._store, names=names) as tables:
            commit_of = dict(tables.rows(_COMMIT_OF))
            now_utc = datetime.datetime.now(datetime.UTC)
            for rows in tables.changed(now_utc, rows=BATCH_ROWS):
                for number, name in enumerate(rows["recording_id"].to_pylist()):
                    stem = _stem_of(commit_of[name])
                    put_rows(self._store, RECORDINGS_FOLDER, rows.slice(number, 1), stem=stem)


def _stem_of(name: str) -> str:
    return PurePosixPath(name).stem


def _part_columns(part: Transcript, number: int, *, is_last: bool) -> dict[str, Any]:
    return {
        "part": number, "last_part": is_last, "channel": part.channel,
        "speech_s": part.speech_s, "speech_without_text_s": part.speech_without_text_s,
        "status": "ok" if part.segments else "no_speech",
        "language": part.language, "language_probability": part.language_probability,
        "segments": [asdict(segment) | {"segment": index}
                     for index, segment in enumerate(part.segments)] or None,
    }  # fmt: skip
