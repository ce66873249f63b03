"""Transcription stage: PARTS in, RESULTS out; parts with speech go to the engine.

The engine finds segments or labels and decodes many parts in parallel in a thread of its own, so
this stage is called from several threads: while one call waits for its last part, others keep the
engine's slots full. The engine loads in the background, so that extraction can start.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from corpus_asr.activity import Activity
from corpus_asr.config.decoding import DecodingSettings, other_language_notice
from corpus_asr.config.run import CLASSIFY_AUDIO, ModelSettings, RunConfig
from corpus_asr.errors import CheckpointError, ConfigError, EngineError, ItemError
from corpus_asr.failure_kinds import NOT_A_NUMBER
from corpus_asr.families.registry import PartFeatures
from corpus_asr.logs import event
from corpus_asr.schemas import PARTS, RESULTS
from corpus_asr.segments import PartLabels, PartTranscript, SpeechSpan
from corpus_asr.stages.measures import measured_columns
from corpus_asr.stages.parts import (
    NOTHING_SAID,
    OK,
    PartRow,
    check_finite,
    failure_fields,
    one_row,
    part_rows,
)
from corpus_asr.storage.manifest import AlignedText, aligned_text, hotwords_of
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.threads import spin_briefly
from corpus_asr.transcription.windows import KnownText, PartRequest

if TYPE_CHECKING:  # imports torch
    from corpus_asr.transcription.engine import Engine
    from corpus_asr.transcription.routing import RoutedEngine

_LOG = logging.getLogger(__name__)

_CARRIED = [name for name in PARTS.names if name in set(RESULTS.names)]


class TranscribingEngine(Protocol):
    """The methods of `transcription.engine.Engine` that this stage uses."""

    @property
    def device_name(self) -> str:
        """Value of the outcome's `device` column."""

    def submit(self, request: PartRequest) -> Future[PartTranscript]:
        """Queue one part; thread-safe."""

    def statistics(self) -> Activity:
        """Return the activity since the engine started."""

    def close(self) -> None:
        """Release the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Engine settings of one worker: a job's configuration on one device."""

    config: RunConfig
    device: str
    num_threads: int | None = None
    """CPU threads of the model; None for torch's default."""
    dtype: str | None = None
    """Data type in place of the job's."""
    gpu_fraction: float = 1.0
    """Fraction of its GPU's memory that this worker may use."""


EngineFactory = Callable[[EngineSpec], TranscribingEngine]
"""Loads the engine of one worker; pickled by reference, hence a module-level function."""


def load_engine(spec: EngineSpec) -> TranscribingEngine:
    """Download the weights to this machine, once, and load the engine.

    Raises:
        EngineError: the worker requires a GPU that is not available.
    """
    spin_briefly()
    # Import torch in the worker only.
    from corpus_asr.families.loading import check_cuda
    from corpus_asr.transcription.labels import label_engine

    config, model = spec.config, spec.config.needed_model
    if spec.device.startswith("cuda"):
        check_cuda(spec.device)
    shared: dict[str, Any] = {
        "device": spec.device,
        "dtype": spec.dtype or model.compute_type,
        "num_threads": spec.num_threads,
        "slots": config.transcribe.slots,
        "gpu_fraction": spec.gpu_fraction,
        "reproducible": model.reproducible,
    }
    if config.pipeline == CLASSIFY_AUDIO:
        folder = fetch_checkpoint(model.checkpoint, revision=model.revision)
        return label_engine(folder, classification=config.classification, **shared)
    return load_transcriber(
        model, config.decoding.settings(), align_model=config.align.model, **shared
    )


def load_transcriber(
    model: ModelSettings,
    decoding: DecodingSettings,
    *,
    align_model: str | None,
    device: str,
    dtype: str,
    num_threads: int | None,
    **networks: Any,
) -> "Engine | RoutedEngine":
    """Download a model's weights to this machine, once, and load the engine that transcribes.

    `networks` are further options of `Engine.from_folder`, which a user's recognizer has not.
    """
    from corpus_asr.transcription.engine import Engine
    from corpus_asr.transcription.routing import RoutedEngine

    shared: dict[str, Any] = {
        "decoding": decoding,
        "device": device,
        "dtype": dtype,
        "num_threads": num_threads,
        "aligner": None if align_model is None else fetch_checkpoint(align_model),
    }
    if model.recognizer is not None:
        return Engine.from_recognizer(model.recognizer, model.given_checkpoint, **shared)
    folder = fetch_checkpoint(model.checkpoint, revision=model.revision)
    if not model.by_language:
        return Engine.from_folder(folder, **shared, **networks)
    others = {code: fetch_checkpoint(name) for code, name in model.by_language.items()}
    return RoutedEngine.from_folders(folder, others, **shared, **networks)


class TranscribeStage:
    """Transcribes batches of parts with one engine, which loads while calls wait."""

    def __init__(self, spec: EngineSpec, *, engine_factory: EngineFactory = load_engine) -> None:
        self._aligns = spec.config.decoding.align
        # Loaded in the background: a loading error is raised by the first call with its own
        # type, which an exception raised here would lose on its way out of a Ray actor.
        loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-engine")
        self._engine = loader.submit(engine_factory, spec)
        loader.shutdown(wait=False)
        self._began_s, self._loaded_s = time.monotonic(), float("inf")
        self._engine.add_done_callback(self._note_loaded)
        self._lock = threading.Lock()
        self._begun = self._transcribed = 0
        self._transcribed_s = 0.0

    @property
    def activity(self) -> Activity:
        """Return the activity so far; thread-safe."""
        with self._lock:
            parts = Activity(
                parts_started=self._begun,
                parts_transcribed=self._transcribed,
                transcribed_s=self._transcribed_s,
            )
        now_s = time.monotonic()
        if not self._engine.done():
            return parts + Activity(load_s=now_s - self._began_s)
        if self._engine.cancelled() or self._engine.exception() is not None:
            return parts
        loaded_s = min(now_s, self._loaded_s)
        loading = Activity(load_s=loaded_s - self._began_s, transcribe_alive_s=now_s - loaded_s)
        return parts + loading + self._engine.result().statistics()

    def _note_loaded(self, _: "Future[TranscribingEngine]") -> None:
        self._loaded_s = time.monotonic()

    def wait_until_loaded(self) -> None:
        """Wait for the engine, so that loading errors are not attributed to a part."""
        self._engine.result()

    def transcribe_silence(self, silence: pa.Table) -> None:
        """Transcribe a PARTS row of silence, as a check.

        Raises:
            EngineError: the engine fails, or returns NaN.
        """
        [row] = part_rows(silence)
        try:
            transcript = self._engine.result().submit(part_request(row)).result()
        except (CheckpointError, ConfigError, EngineError):
            raise
        except Exception as error:
            if isinstance(error, ItemError) and error.kind == NOT_A_NUMBER:
                raise self._wrong(f"found {error}, expected numbers") from error
            # The engine responded; the text is irrelevant.
            event(_LOG, logging.INFO, "silence_not_transcribed", error=repr(error))
            return
        try:
            check_finite(_transcribed(transcript))
        except ValueError as error:
            raise self._wrong(str(error)) from error

    def _wrong(self, what: str) -> EngineError:
        return EngineError(
            f"transcribing a second of silence on {self.device_name}: {what}; set "
            "model.compute_type to bfloat16 or float32 if all workers fail, else check this "
            "device (nvidia-smi -q -d ECC)"
        )

    @property
    def device_name(self) -> str:
        """Device of the engine, after loading."""
        return self._engine.result().device_name

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Return one RESULTS row per row of `parts`, in the same order.

        Thread-safe.
        """
        with self._lock:
            self._begun += parts.num_rows
        rows = part_rows(parts)
        # Submit all before waiting for the first: the engine fills its slots from many parts.
        futures = [self._submit(row) for row in rows]
        results = [
            one_row(RESULTS, _carry(row))
            if future is None
            else _finish(row, future, self.device_name)
            for row, future in zip(rows, futures, strict=True)
        ]
        with self._lock:
            self._transcribed += parts.num_rows
        return pa.concat_tables(results)

    def _submit(self, row: PartRow) -> Future[PartTranscript] | None:
        """Submit a part with speech to the engine; an immediate error becomes its result."""
        progress = _PartProgress(self._count, audio_s=_duration_s(row) or 0.0)
        if row["status"] != OK:
            progress.end()
            return None  # need not wait for the engine to load
        engine = self._engine.result()
        try:
            request = part_request(
                row,
                aligned_text(row["uri"], row["metadata"]) if self._aligns else None,
                listener=progress.reach,
                hotwords=hotwords_of(row["uri"], row["metadata"]),
            )
            future = engine.submit(request)
        except (CheckpointError, ConfigError, EngineError):
            raise
        except Exception as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(progress.end)
        return future

    def _count(self, audio_s: float) -> None:
        with self._lock:
            self._transcribed_s += audio_s

    def close(self) -> None:
        """Close the engine, if it was loaded."""
        # `exception` waits for a model being loaded, which cannot be interrupted.
        if self._engine.cancel() or self._engine.exception() is not None:
            return
        self._engine.result().close()


class _PartProgress:
    """Counts the processed seconds of a part, up to its whole duration."""

    def __init__(self, count: Callable[[float], None], *, audio_s: float) -> None:
        self._count, self._audio_s, self._counted_s = count, audio_s, 0.0

    def reach(self, audio_s: float, _: object = None) -> None:
        """Count up to `audio_s`; repeated decoding or a second model counts once."""
        further_s = min(audio_s, self._audio_s) - self._counted_s
        if further_s > 0:
            self._counted_s += further_s
            self._count(further_s)

    def end(self, _: object = None) -> None:
        """Count the remaining seconds."""
        self.reach(self._audio_s)


def part_request(row: PartRow, text: AlignedText | None = None, **options: Any) -> PartRequest:
    """Return the engine's request for a PARTS row, with further `options` of `PartRequest`.

    If `text` is given, its words are aligned with the part.
    """
    spans, mel = row["speech_spans"], row["num_mel_bins"]
    language_features = row["language_features"]
    known_text = None if text is None else KnownText.of_part(
        text.text,
        name=redact_uri(row["uri"]),
        start_s=row["part_start_s"],
        end_s=row["part_end_s"],
        duration_s=row["header_duration_s"],
        is_first=row["part"] == 0,
        is_last=row["last_part"],
        clip=(text.start_s, text.end_s),
    )  # fmt: skip
    return PartRequest(
        recording_id=row["recording_id"],
        part=row["part"],
        features=row["features"].reshape(-1, mel),  # (frame, mel)
        num_samples=row["num_samples"],
        pad_value=row["pad_value"],
        start_s=row["part_start_s"],
        speech=None if spans is None else tuple(SpeechSpan(**span) for span in spans),
        language_features=None if language_features is None else language_features.reshape(-1, mel),
        known_text=known_text,
        further={
            further["kind"]: PartFeatures(
                values=further["features"].reshape(-1, further["num_mel_bins"]),
                pad_value=further["pad_value"],
            )
            for further in row["further"] or ()
        },
        **options,
    )


_OTHER_LANGUAGE_TOLD = threading.Event()


def _finish(row: dict[str, Any], future: Future[PartTranscript], device_name: str) -> pa.Table:
    try:
        transcript = future.result()
        columns = _transcribed(transcript)
        result = _carry(row, columns["segments"]) | columns | {"device": device_name}
        check_finite(result)
        table = one_row(RESULTS, result)
    except (CheckpointError, ConfigError, EngineError):
        raise
    except Exception as error:  # a part's failure becomes its row
        failure = failure_fields(error, stage="transcribe", of=row)
        return one_row(RESULTS, _carry(row) | {"device": device_name} | failure)
    if transcript.other_language:
        # An archive may have many: the first of a worker; all are marked in the table.
        _LOG.log(
            logging.INFO if _OTHER_LANGUAGE_TOLD.is_set() else logging.WARNING,
            "%s", other_language_notice(redact_uri(row["uri"])),
        )  # fmt: skip
        _OTHER_LANGUAGE_TOLD.set()
    event(
        _LOG, logging.INFO, "part_transcribed", recording_id=row["recording_id"], part=row["part"],
        segments=len(transcript.segments), language=transcript.language,
        transcribe_s=round(transcript.transcribe_s, 3),
    )  # fmt: skip
    return table


def _transcribed(transcript: PartTranscript) -> dict[str, Any]:
    """Return the RESULTS columns with a part's text or labels."""
    segments = [
        asdict(segment) | {"segment": index, "tokens": list(segment.tokens)}
        for index, segment in enumerate(transcript.segments)
    ]
    columns = {
        "segments": segments,
        "segments_written": len(segments),
        "language": transcript.language,
        "language_probability": transcript.language_probability,
        "transcribe_s": transcript.transcribe_s,
        "speech_without_text_s": transcript.speech_without_text_s,
    }
    if transcript.labels is not None:
        if segments:
            raise ValueError("keeping a result: found segments and labels, expected one of them")
        columns |= label_columns(transcript.labels)
    if (placed := transcript.placed) is not None:
        from corpus_asr.transcription.joined_text import text_columns

        words = [word for segment in transcript.segments for word in segment.words or ()]
        indices = [index for segment_indices in placed.indices for index in segment_indices]
        places = zip(indices, (word.end_s for word in words), strict=True)
        columns |= text_columns([len(word) for word in placed.words], places)
        columns["extra_words"] = placed.extra_words
    return columns


def label_columns(labels: PartLabels) -> dict[str, Any]:
    """Return the RESULTS columns with a part's classification."""
    rows = [
        {"window": number, "start_s": window.start_s, "end_s": window.end_s,
         "weight_s": window.weight_s, "rank": rank, "label": label, "probability": probability}
        for number, window in enumerate(labels.windows)
        for rank, (label, probability) in enumerate(window.labels, start=1)
    ]  # fmt: skip
    return {
        "labels": rows,
        "segments_written": len(rows),
        "label_means": [{"label": name, "probability": share} for name, share in labels.means]
        or None,
        "label_weight_s": labels.weight_s,
    }


def _carry(row: dict[str, Any], segments: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return the RESULTS columns that do not depend on transcription.

    Columns of measures are added to `segments`.
    """
    carried = {name: row[name] for name in _CARRIED}
    spoken = row["speech_spans"]
    if spoken is None and row["part_end_s"] is not None:
        spoken = [{"start_s": row["part_start_s"], "end_s": row["part_end_s"]}]
    measured = measured_columns(
        row["measured"] or (), spoken or (), segments, start_s=row["part_start_s"]
    )
    return carried | NOTHING_SAID | {"duration_s": _duration_s(row)} | measured


def _duration_s(row: dict[str, Any]) -> float | None:
    start_s, end_s = row["part_start_s"], row["part_end_s"]
    return None if start_s is None or end_s is None else end_s - start_s
