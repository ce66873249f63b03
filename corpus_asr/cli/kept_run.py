"""Results of `transcribe -o` as a small run for `open_run`: tables below its records.

    FOLDER/.corpus-asr/run/    tables of the recordings whose files are in FOLDER

Each recording is a commit of its own, so that nothing is lost where a call ends early; once it is
transcribed again its earlier commit is removed. Of two commits of a recording the earlier counts:
so the record of its files names all that there may be, before they are there.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa

from corpus_asr.config.options import OPTION_NAMES, sections_from, translated
from corpus_asr.config.run import ModelSettings, OutputSettings, RunConfig, SourceSettings
from corpus_asr.formats.transcript import Transcript
from corpus_asr.schemas import RESULTS, SEGMENT_FIELDS, SPEAKERS
from corpus_asr.segments import Segment
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
    table_name,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import public, recording_id, within

Version = tuple[str | None, int | None]
"""ETag and size of a recording."""

_RUN_ID = "transcribe"
_FOLDERS = (COMMITS_FOLDER, SPEAKERS_FOLDER, RECORDINGS_FOLDER)
_SEGMENT_NAMES = {each.name for each in SEGMENT_FIELDS} & {each.name for each in fields(Segment)}


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

    def stem(self) -> str:
        """Return a new commit's stem, by which a later call finds it."""
        return self._store.stem()

    def keep(self, uri: str, version: Version, transcript: Transcript, *, stem: str) -> None:
        """Commit what a recording says, and who says it, under a stem."""
        own = recording_id(public(uri))
        # Where channels were transcribed separately, each is a part.
        parts = transcript.channels or (transcript,)
        rows = [
            _row(own, uri, version, transcript, part, number, last=number == len(parts) - 1)
            for number, part in enumerate(parts)
        ]
        model = (transcript.model or self._model, self._revision)
        results = pa.Table.from_pylist(rows, schema=RESULTS)
        name = self._store.put_commit(commit_rows(results, run_id=_RUN_ID, model=model), stem=stem)
        if transcript.turns is not None:
            voices = RecordingVoices(recording_id=own, uri=public(uri), made_of=name)
            rows = pa.Table.from_pylist(turn_rows(voices, transcript.turns), SPEAKERS)
            put_rows(self._store, SPEAKERS_FOLDER, rows, stem=stem)
        with RunTables(self._store, names=[name]) as tables:
            now_utc = datetime.datetime.now(datetime.UTC)
            for recording in tables.complete(now_utc, rows=BATCH_ROWS):
                put_rows(self._store, RECORDINGS_FOLDER, recording, stem=stem)

    def forget(self, stems: Sequence[str]) -> None:
        """Remove earlier commits of a recording."""
        names = [table_name(folder, stem) for stem in stems for folder in _FOLDERS]
        self._store.remove_all(names)


def _row(
    own: str,
    uri: str,
    version: Version,
    whole: Transcript,
    part: Transcript,
    number: int,
    *,
    last: bool,
) -> dict[str, Any]:
    etag, size_bytes = version
    return {
        "recording_id": own, "uri": uri, "size_bytes": size_bytes, "etag": etag,
        "part": number, "last_part": last, "channel": part.channel, "attempts": 1,
        "part_start_s": 0.0, "part_end_s": whole.duration_s, "duration_s": whole.duration_s,
        "speech_s": part.speech_s, "speech_without_text_s": part.speech_without_text_s,
        "status": "ok" if part.segments else "no_speech",
        "audio_track": whole.audio_track, "audio_tracks": list(whole.audio_tracks) or None,
        "time_corrections": whole.time_corrections,
        "language": part.language, "language_probability": part.language_probability,
        "segments": [_segment(at, segment) for at, segment in enumerate(part.segments)] or None,
    }  # fmt: skip


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    words = None if segment.words is None else [asdict(word) for word in segment.words]
    values = {name: getattr(segment, name) for name in _SEGMENT_NAMES}
    return values | {"segment": number, "words": words}
