"""Several models behind one: each part goes to the model for its language.

The main model detects the language, in the same windows as always, and transcribes what no other is
for. Others may be of other families: parts carry the features of each. All models are loaded at the
start: one that cannot be loaded says so before hours of work.
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from corpus_asr.activity import Activity
from corpus_asr.config.decoding import DecodingSettings, only_language
from corpus_asr.decoding.device import set_threads
from corpus_asr.decoding.one_pass import LoadedRecognizer
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import ConfigError
from corpus_asr.families.loading import load_model
from corpus_asr.families.registry import further_folders, part_features
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.threads import run_apart
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.transcribers import (
    PartTranscriber,
    check_decoding,
    part_transcriber,
    word_placer,
)
from corpus_asr.transcription.whisper import WhisperTranscriber
from corpus_asr.transcription.windows import PartRequest

if TYPE_CHECKING:
    from corpus_asr.transcription.word_placer import WordPlacer

NO_KINDS: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class _RoutedPart:
    now: "Future[PartTranscript] | None" = None
    """Of the engine that has it."""
    is_cancelled: bool = False


class RoutedEngine:
    """Engines of several checkpoints; thread-safe, used as an `Engine` is."""

    def __init__(
        self,
        main: Engine,
        others: Mapping[str, Engine],
        *,
        decoding: DecodingSettings,
        kinds: Mapping[str, str] = NO_KINDS,
    ) -> None:
        """`kinds` of features by language, where its model takes others than the main one."""
        self._main = main
        self._others = dict(others)
        self._kinds = kinds
        self._decoding = decoding
        # One engine may serve several languages.
        self._engines = tuple(dict.fromkeys((main, *others.values())))
        self._under_way: dict[Future[PartTranscript], _RoutedPart] = {}
        self.device_name = main.device_name

    @classmethod
    def from_folders(
        cls,
        folder: Path,
        others: Mapping[str, Path],
        *,
        decoding: DecodingSettings,
        device: str = "auto",
        dtype: str = "auto",
        slots: int | Literal["auto"] = "auto",
        num_threads: int | None = None,
        gpu_fraction: float = 1.0,
        reproducible: bool = False,
        aligner: Path | None = None,
    ) -> "RoutedEngine":
        """Load the main checkpoint's folder and one per language code, the same one once.

        The rest is as of `Engine.from_folder`, for each model; with `auto` slots they share the
        device's memory.
        """
        set_threads(num_threads)
        placer = word_placer(aligner, device=device, dtype=dtype)
        transcribers = _checked_transcribers(folder, others, decoding, placer)

        def load(path: Path) -> SlotModel | LoadedRecognizer:
            return run_apart(lambda: load_model(path, device=device, dtype=dtype))

        models = {path: load(path) for path in transcribers}
        engines: dict[Path, Engine] = {}
        with ExitStack() as stack:
            for num_unloaded, (path, model) in zip(
                count(len(models), -1), models.items(), strict=False
            ):
                codes = [
                    code
                    for code, language_folder in others.items()
                    if path == language_folder != folder
                ]
                engine = Engine(
                    model,
                    transcribers[path],
                    decoding=_in_language(decoding, codes[0]) if codes else decoding,
                    slots=slots,
                    sharers=num_unloaded,
                    gpu_fraction=gpu_fraction,
                    reproducible=reproducible,
                    placer=placer,
                )
                engines[path] = stack.enter_context(engine)
            stack.pop_all()  # they go on; were one refused, the others would be closed
        chosen = {code: engines[path] for code, path in others.items() if path != folder}
        further = further_folders(folder, transcribers)
        kinds = {code: part_features(path).kind for code, path in others.items()}
        kinds = {code: kind for code, kind in kinds.items() if kind in further}
        return cls(engines[folder], chosen, decoding=decoding, kinds=kinds)

    @property
    def slots(self) -> int:
        """Windows decoded side by side, of all models."""
        return sum(engine.slots for engine in self._engines)

    @property
    def predicted_bytes(self) -> int | None:
        """What this process is predicted to take at its peak, as of `Engine`."""
        predicted_bytes = [engine.predicted_bytes for engine in self._engines]
        if None in predicted_bytes:
            return None
        shared = self._main.shared_bytes
        return shared + sum(
            engine_bytes - shared for engine_bytes in predicted_bytes if engine_bytes is not None
        )

    @property
    def languages(self) -> Collection[str]:
        """Codes of the languages that the main model can detect."""
        return self._main.languages

    def check(self, decoding: DecodingSettings) -> None:
        """Refuse what the checkpoints cannot do."""
        _check_mode(decoding)
        only = only_language(decoding)
        if only not in self._others:
            self._main.check(decoding)
        for code, engine in self._others.items():
            if only in (None, code):
                engine.check(_in_language(decoding, code))

    def submit(self, part: PartRequest) -> "Future[PartTranscript]":
        """Queue a part, as `Engine.submit` does; the main model comes first."""
        if part.decoding is not None:
            _check_mode(part.decoding)
        settings = part.decoding or self._decoding
        if part.detect_only:
            return self._main.submit(replace(part, decoding=settings))
        only = only_language(settings)
        if only is not None:
            return self._submit(part, only, settings)
        future: Future[PartTranscript] = Future()
        future.set_running_or_notify_cancel()  # `cancel` asks the engines
        work = _RoutedPart()

        def detected(done: "Future[PartTranscript]") -> None:
            try:
                first = done.result()
                code = first.language
                if code is None or code not in self._others:
                    future.set_result(first)
                    return
                certain = _with_certainty(part, first.language_probability)
                second = self._submit(certain, code, _in_language(settings, code))
                work.now = second
                if work.is_cancelled:
                    self._others[code].cancel(second)
            except Exception as error:  # handed to whoever waits for the part
                future.set_exception(error)
                return
            second.add_done_callback(lambda done: _pass_on(first, done, future))

        first_pass = work.now = self._main.submit(replace(part, decoding=settings))
        self._under_way[future] = work
        future.add_done_callback(self._under_way.pop)
        first_pass.add_done_callback(detected)
        return future

    def _submit(
        self, part: PartRequest, code: str, decoding: DecodingSettings
    ) -> "Future[PartTranscript]":
        engine = self._others.get(code, self._main)
        return engine.submit(replace(part.with_kind(self._kinds.get(code)), decoding=decoding))

    def cancel(self, future: "Future[PartTranscript]") -> None:
        """End a part that nobody waits for, as `Engine.cancel` does."""
        work, running = self._under_way.get(future), future
        if work is not None:
            work.is_cancelled = True  # before it is looked at what is under way
            running = work.now or future
        for engine in self._engines:  # it does nothing to the part of another
            engine.cancel(running)

    def statistics(self) -> Activity:
        """What has been done since the engines began, all together."""
        activities = [engine.statistics() for engine in self._engines]
        return replace(
            Activity.total(activities), slots=sum(activity.slots for activity in activities)
        )

    def close(self) -> None:
        """Stop within a decoding step; what is not done yet fails with `ClosedError`."""
        for engine in self._engines:
            engine.close()


def _with_certainty(part: PartRequest, sure: float | None) -> PartRequest:
    """Return the part with its listener given how sure the main model is of the language."""
    listener = part.listener
    if listener is None:
        return part

    def listen(transcribed_s: float, said: Sequence[Segment]) -> None:
        listener(transcribed_s, [replace(segment, language_probability=sure) for segment in said])

    return replace(part, listener=listen)


def _pass_on(
    first: PartTranscript, done: "Future[PartTranscript]", future: "Future[PartTranscript]"
) -> None:
    try:
        transcript = done.result()
    except Exception as error:  # handed to whoever waits for the part
        future.set_exception(error)
        return
    sure = first.language_probability
    future.set_result(
        replace(
            transcript,
            segments=tuple(
                replace(segment, language_probability=sure) for segment in transcript.segments
            ),
            language=first.language,  # which names the model, whether or not it found a text
            language_probability=sure,
            transcribe_s=first.transcribe_s + transcript.transcribe_s,
        )
    )


def _checked_transcribers(
    folder: Path,
    others: Mapping[str, Path],
    decoding: DecodingSettings,
    placer: "WordPlacer | None",
) -> dict[Path, PartTranscriber]:
    # The main checkpoint comes first: it is loaded, and given its slots, before the others.
    _check_mode(decoding)
    elsewhere = {code: path for code, path in others.items() if path != folder}
    main = part_transcriber(folder)
    check_decoding(main, placer, decoding)
    if not isinstance(main, WhisperTranscriber):
        raise ConfigError(
            f"loading {folder.name} to detect languages for model.by_language: its family does not "
            "distinguish them, expected a multilingual Whisper checkpoint; use one, or remove "
            "by_language"
        )
    transcribers: dict[Path, PartTranscriber] = {folder: main.leaving(elsewhere)}
    for code, path in elsewhere.items():
        transcriber = transcribers.setdefault(path, part_transcriber(path))
        try:
            check_decoding(transcriber, placer, _in_language(decoding, code))
        except ConfigError as error:
            raise ConfigError(f"reading model.by_language.{code}: {error}") from error
    return transcribers


def _check_mode(decoding: DecodingSettings) -> None:
    if decoding.language_mode == "window" and only_language(decoding) is None:
        raise ConfigError(
            "decoding.language_mode: found window, expected recording or part, since a part goes "
            "to one of several models as a whole; change it, or leave model.by_language out"
        )


def _in_language(decoding: DecodingSettings, code: str) -> DecodingSettings:
    return replace(decoding, language=code, language_mode="recording")
