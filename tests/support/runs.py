"""Outputs of runs whose results are written by hand, without a model."""

import importlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from corpus_asr.config.run import (
    DEFAULT_OPTIONS,
    PseudoLabelConfig,
    Retry,
    RunConfig,
    RunOptions,
    SourceSettings,
)
from corpus_asr.edits.corrections import (
    Corrections,
    EditedSegment,
    correct,
    read_saved,
    save_correction,
)
from corpus_asr.schemas import FILES
from corpus_asr.segments import SpeakerTurn
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.finish import OutcomeCounts
from corpus_asr.storage.run_state.finish import finish as finish_run
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.own_sources import record_sources
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing, read_packs
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.rewriting import write_identities
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, RunRecord, begin_run, fingerprint
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.source_listings import note_listing
from corpus_asr.storage.run_state.speaker_turns import RecordingVoices, turn_rows, write_turns
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import describe
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import share_of_tone, tone, wav_bytes, wav_of
from tests.support.tables import (
    commit,
    digest_of,
    files,
    part,
    results,
    run_config,
    stored_segments,
)

_USUAL = {
    "language": "en", "task": "transcribe", "confidence": 0.9, "avg_logprob": -0.25,
    "no_speech_prob": 0.0, "compression_ratio": 1.2, "temperature": 0.0, "tokens": [1],
}  # fmt: skip

Said = tuple[float, float, str] | tuple[float, float, str, Mapping[str, Any]]


def tone_hz(second: int) -> float:
    return 300.0 + 100.0 * second


def write_tones(path: Path, *, seconds: int, num_channels: int = 1) -> None:
    """Write a recording; the second channel is 50 Hz above the first."""
    rows = [
        np.concatenate([tone(1.0, hz=tone_hz(at) + 50 * row) for at in range(seconds)], axis=1)
        for row in range(num_channels)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(np.concatenate(rows), rate_hz=SAMPLE_RATE_HZ))


def seconds_heard(samples: np.ndarray) -> list[int]:
    """Return which seconds of a recording whole seconds of samples are."""
    found = []
    for start in range(0, len(samples) - SAMPLE_RATE_HZ + 1, SAMPLE_RATE_HZ):
        second = samples[start : start + SAMPLE_RATE_HZ]
        shares = [share_of_tone(second, tone_hz(at)) for at in range(60)]
        found.append(int(np.argmax(shares)))
    return found


@dataclass(frozen=True)
class Transcribed:
    """Recordings and what a run made of them."""

    folder: Path

    @property
    def audio(self) -> Path:
        return self.folder / "audio"

    def config(
        self, *, output: str = "output", to: str = "set", **sections: Any
    ) -> PseudoLabelConfig:
        values: dict[str, Any] = {
            "pipeline": "pseudo_label",
            "source": {"uri": str(self.audio)},
            "model": {"checkpoint": "some/model"},
            "output": {"uri": str(self.folder / output)},
            **sections,
        }
        dataset = {"uri": str(self.folder / to), "workers": 1, "validation_fraction": 0.0}
        return PseudoLabelConfig.model_validate(
            values | {"dataset": dataset | sections.get("dataset", {})}
        )

    def uri(self, name: str) -> str:
        return str(self.audio / name)

    def run(
        self,
        said: Mapping[str, Sequence[Said]],
        *,
        output: str = "output",
        extract: Mapping[str, Any] | None = None,
        decoding: Mapping[str, Any] | None = None,
    ) -> OutputStore:
        """Write tables as if a run had heard this in the recordings, which have to be there."""
        store = OutputStore(str(self.folder / output))
        sections = {"extract": dict(extract or {}), "decoding": dict(decoding or {})}
        config = run_config(self.audio, store.uri, **sections)
        begin_run(store, config, f"settings-{output}")
        rows = [row for name, segments in said.items() for row in self._rows(name, segments)]
        commit(store, results(*rows))
        return store

    def _rows(self, name: str, said: Sequence[Said]) -> list[dict[str, Any]]:
        uri = self.uri(name)
        version = describe(uri)
        apart: dict[int | None, list[dict[str, Any]]] = {}
        for start_s, end_s, text, *more in said:
            values = dict(more[0]) if more else {}
            segments = apart.setdefault(values.pop("channel", None), [])
            row = {"segment": len(segments), "start_s": start_s, "end_s": end_s, "text": f" {text}"}
            segments.append(_USUAL | row | values)
        lasts_s = (Path(uri).stat().st_size - 44) / 2 / SAMPLE_RATE_HZ / max(1, len(apart))
        parts = list(apart.items()) or [(None, [])]
        return [
            {
                "recording_id": recording_id(uri), "uri": uri,
                "size_bytes": version.size_bytes, "etag": version.etag,
                "part": part, "last_part": part == len(parts) - 1, "channel": channel,
                "part_start_s": 0.0, "part_end_s": lasts_s, "duration_s": lasts_s,
                "status": "ok" if segments else "no_speech", "attempts": 1,
                "language": "en", "segments": segments or None,
            }
            for part, (channel, segments) in enumerate(parts)
        ]  # fmt: skip


class InThisProcess(IsolatedGenerator):
    """Stands for `IsolatedGenerator` where no crash is expected: without its second of start."""

    def __init__(self, target: str, *, init_kwargs: dict[str, Any], timeout_s: float) -> None:
        module, _, name = target.partition(":")
        assert timeout_s > 0
        self._cut = getattr(importlib.import_module(module), name)(**init_kwargs)

    def run(self, item: Any) -> Generator[Any, None, None]:
        yield from self._cut(item)

    def close(self) -> None:
        """Nothing to end."""


REVISION = "0123456789abcdef"
NAMES = ("a.wav", "b.wav", "c.wav")


class ManualRun:
    """A job over some files, done step by step."""

    run: RunRecord
    plan: Plan

    def __init__(self, folder: Path, names: Sequence[str] = NAMES, **sections: Any) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        for name in names:
            (self.source / name).write_bytes(wav_of(name))
        self.config = run_config(self.source, folder / "output", **sections)
        self.store = OutputStore(self.config.output.uri)

    def begin(self) -> None:
        name = fingerprint(self.config, REVISION)
        self.plan = make_plan(self.config, self.store, model_revision=REVISION)
        self.run = begin_run(self.store, self.config, name)
        write_identities(self.store, self.plan.identities)
        note_listing(self.store, self.plan.name, self.config.source)

    def commit(self, name: str, part: int = 0, **values: Any) -> None:
        """Commit a part of a file; what is not given is that of a minute in English."""
        uri = str(self.source / name)
        listed = (row for batch in FileListing(self.config.source) for row in batch.to_pylist())
        (file,) = [row for row in listed if row["uri"] == uri]
        file["recording_id"] = Identities.read(self.store).id_of(uri)
        file["begun_by"] = self._attempt_at(file)
        segment = {"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": " Hi.", "confidence": 0.95}
        digest = digest_of(file["uri"]) if values.get("last_part", True) else None
        row = {
            **file, "content_digest": digest, "part": part, "last_part": True,
            "part_start_s": 0.0, "part_end_s": 60.0,
            "duration_s": 60.0, "speech_s": 30.0, "status": "ok", "language": "en",
            "device": "cpu", "decode_errors": 0, "decode_s": 0.1, "transcribe_s": 1.0,
            "segments": [segment], **values,
        }  # fmt: skip
        commit(
            self.store,
            results(row),
            run_id=self.run.run_id,
            model="some/model",
            model_revision=REVISION,
        )

    def _attempt_at(self, file: dict[str, Any]) -> str | None:
        """Return the attempt that a plan goes on with, or of what is done the one that counts."""
        batch = pa.RecordBatch.from_pylist([file], FILES)
        with RunTables(self.store, columns=VERSION_COLUMNS, listing=[batch]) as tables:
            left = tables.remaining(batch, Retry.failed).to_pylist()
            counting = dict(tables.rows("select recording_id, counting from chosen"))
        found: str | None = left[0]["begun_by"] if left else counting[file["recording_id"]]
        return found

    def fail(self, name: str, **values: Any) -> None:
        failure: dict[str, Any] = {
            "status": "failed", "duration_s": 0.0, "segments": None, "error_stage": "extract",
            "error_kind": "not_audio", "error_message": f"decoding {name}: not audio",
            "retryable": False,
        }  # fmt: skip
        self.commit(name, **(failure | values))

    def finish(self) -> None:
        finish_plan(self.store, self.run, self.config, self.plan)


def finish_plan(store: OutputStore, run: RunRecord, config: RunConfig, plan: Plan) -> OutcomeCounts:
    """End a run that was to do a plan."""
    return finish_run(
        store, run, config, model_revision=REVISION, listing=read_listing(store, plan.name),
        num_listed=plan.num_files, plan_name=plan.name,
    )  # fmt: skip


def planned_files(store: OutputStore, plan: Plan) -> list[dict[str, Any]]:
    """Return the files that a plan wants done."""
    packs = (row for pack in read_packs(store, plan) for row in pack.to_pylist())
    return [file for pack in packs for file in pack["files"]]


def complete_run(
    store: OutputStore,
    config: RunConfig,
    rows_of_file: Callable[[dict[str, Any]], Sequence[dict[str, Any]]],
    *,
    options: RunOptions = DEFAULT_OPTIONS,
    run_id: str | None = None,
    files_per_commit: int = 1,
) -> tuple[Plan, OutcomeCounts]:
    """Plan, commit what becomes of each file that is left, and finish."""
    plan = make_plan(config, store, model_revision=REVISION, options=options)
    if plan.redo is not None:
        note_redo(store, plan.redo)
    name = fingerprint(config, REVISION)
    run = begin_run(store, config, name, run_id=run_id, redo=options.redo is not None)
    write_identities(store, plan.identities)
    note_listing(store, plan.name, config.source)
    planned = planned_files(store, plan)
    for start in range(0, len(planned), files_per_commit):
        together = planned[start : start + files_per_commit]
        rows = [row for file in together for row in rows_of_file(file)]
        if rows:
            commit(store, results(*rows), run_id=run.run_id)
    return plan, finish_plan(store, run, config, plan)


PASSAGE_S = 2.0


def passage(
    index: int, text: str, *, probabilities: Sequence[float] | None = None, **values: Any
) -> dict[str, Any]:
    """Return a segment of 2 s; with probabilities also its words, evenly spread."""
    start_s = PASSAGE_S * index
    words: Any = None
    if probabilities is not None:
        step_s = PASSAGE_S / len(probabilities)
        words = [
            {"word": f" {word}", "start_s": start_s + at * step_s,
             "end_s": start_s + (at + 1) * step_s, "probability": probability}
            for at, (word, probability) in enumerate(
                zip(text.split(), probabilities, strict=True))
        ]  # fmt: skip
    usual = {"segment": index, "text": f" {text}", "start_s": start_s, "end_s": start_s + PASSAGE_S,
             "language": "en", "confidence": 0.9, "tokens": [1], "words": words}  # fmt: skip
    return usual | values


def spoken(uri: str, *passages: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return the RESULTS row of a whole recording."""
    duration_s = PASSAGE_S * len(passages)
    usual: dict[str, Any] = {"segments": list(passages), "language": "en", "codec": "pcm_s16le",
                             "channels": 1, "sample_rate_hz": 16_000, "part_start_s": 0.0,
                             "part_end_s": duration_s, "duration_s": duration_s}  # fmt: skip
    return part("", 0, uri=uri, texts=None, **(usual | values))


def of_file(path: Path) -> dict[str, Any]:
    """Return what a listing says of a file's version."""
    info = describe(str(path))
    return {"etag": info.etag, "size_bytes": info.size_bytes}


def run_of(folder: Path, *rows: dict[str, Any], **config: Any) -> OutputStore:
    """Write tables and settings as a run of this user that read all of this machine."""
    store = OutputStore(str(folder))
    store.write_json(CONFIG_NAME, {"source": {"uri": ["/"]}, **config})
    record_sources(store, SourceSettings(uri=("/",)), ())
    if rows:
        commit(store, results(*rows))
    return store


def correct_segment(
    store: OutputStore,
    original: str,
    text: str,
    *,
    speaker: str | None = None,
    checked: bool = True,
    name: str = "",
) -> str:
    """Save a correction of the only segment with this text, as a window of `view` does.

    Those of before are undone.
    """
    rows = [row for batch in stored_segments(store) for row in batch.to_pylist()]
    (segment,) = (row for row in rows if row["text"].strip() == original)
    own = segment["recording_id"]
    saved = read_saved(store)
    before = [each.id for each in Corrections(saved).of(own) if each.original == original]
    times = {side: segment[side] for side in ("start_s", "end_s")}
    written = EditedSegment(**times, text=text, speaker=speaker, checked=checked)
    made = correct(own, [segment], [written], name=name, undoes=before)
    saved_as = save_correction(store, made, saved)
    assert saved_as is not None
    return saved_as


def finished(store: OutputStore, *names: str) -> None:
    """End a run as one that listed these recordings."""
    config = run_config("/", store.uri, model="m")
    started = "2026-01-01T00:00:00+00:00"
    run = RunRecord(run_id="run", fingerprint="f-r", started_at=started, continues=False)
    listing = [files(*names)]
    finish_run(store, run, config, model_revision="r", listing=listing, num_listed=len(names))


def says(store: OutputStore, uri: str, *turns: tuple[float, float, str]) -> None:
    """Write who speaks when in a recording, given start, end and speaker of each turn."""
    voices = RecordingVoices(recording_id=recording_id(uri), uri=uri, made_of="test")
    own = [
        SpeakerTurn(start_s=start_s, end_s=end_s, speaker=speaker, confidence=1.0)
        for start_s, end_s, speaker in turns
    ]
    write_turns(store, [turn_rows(voices, own)])
