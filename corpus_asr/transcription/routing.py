"""Routes each part to the model for its language.

The main model detects the language, in the same windows as without routing, and transcribes parts
in languages without a model of their own. Models may belong to different families: parts carry the
features of each. All models are loaded at the start, so that loading errors appear immediately.
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
    engine_future: "Future[PartTranscript] | None" = None
    """Future of the engine that processes the part."""
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
        """`kinds` maps languages to feature kinds, for models whose features differ."""
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
        """Load the main checkpoint folder and one per language; shared folders are loaded once.

        Other arguments apply to each model as in `Engine.from_folder`; with `auto` slots the models
        share the device's memory.
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
            stack.pop_all()  # the engines stay open; after an error the stack closes them
        chosen = {code: engines[path] for code, path in others.items() if path != folder}
        further = further_folders(folder, transcribers)
        kinds = {code: part_features(path).kind for code, path in others.items()}
        kinds = {code: kind for code, kind in kinds.items() if kind in further}
        return cls(engines[folder], chosen, decoding=decoding, kinds=kinds)

    @property
    def slots(self) -> int:
        """Number of windows decoded in parallel, over all models."""
        return sum(engine.slots for engine in self._engines)

    @property
    def languages(self) -> Collection[str]:
        """Codes of the languages that the main model can detect."""
        return self._main.languages

    def check(self, decoding: DecodingSettings) -> None:
        """Raise `ConfigError` for settings that the checkpoints do not support."""
        _check_mode(decoding)
        only = only_language(decoding)
        if only not in self._others:
            self._main.check(decoding)
        for code, engine in self._others.items():
            if only in (None, code):
                engine.check(_in_language(decoding, code))

    def submit(self, part: PartRequest) -> "Future[PartTranscript]":
        """Queue a part as `Engine.submit` does, first for the main model."""
        if part.decoding is not None:
            _check_mode(part.decoding)
        settings = part.decoding or self._decoding
        if part.detect_only:
            return self._main.submit(replace(part, decoding=settings))
        only = only_language(settings)
        if only is not None:
            return self._submit(part, only, settings)
        future: Future[PartTranscript] = Future()
        future.set_running_or_notify_cancel()  # `cancel` acts on the engines
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
                work.engine_future = second
                if work.is_cancelled:
                    self._others[code].cancel(second)
            except Exception as error:  # set on the caller's future
                future.set_exception(error)
                return
            second.add_done_callback(lambda done: _pass_on(first, done, future))

        first_pass = work.engine_future = self._main.submit(replace(part, decoding=settings))
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
        """Cancel a part as `Engine.cancel` does."""
        work, running = self._under_way.get(future), future
        if work is not None:
            work.is_cancelled = True  # set before the current future is read
            running = work.engine_future or future
        for engine in self._engines:  # no effect on parts of other engines
            engine.cancel(running)

    def statistics(self) -> Activity:
        """Combined activity since the engines started."""
        activities = [engine.statistics() for engine in self._engines]
        return replace(
            Activity.total(activities), slots=sum(activity.slots for activity in activities)
        )

    def close(self) -> None:
        """Stop within a decoding step; unfinished parts fail with `ClosedError`."""
        for engine in self._engines:
            engine.close()


def _with_certainty(part: PartRequest, sure: float | None) -> PartRequest:
    """Return the part with the language probability passed to its listener."""
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
    except Exception as error:  # set on the caller's future
        future.set_exception(error)
        return
    sure = first.language_probability
    future.set_result(
        replace(
            transcript,
            segments=tuple(
                replace(segment, language_probability=sure) for segment in transcript.segments
            ),
            language=first.language,  # the routed model's language, even without text
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
    # Load the main checkpoint and allocate its slots before the others.
    _check_mode(decoding)
    elsewhere = {code: path for code, path in others.items() if path != folder}
    main = part_transcriber(folder)
    check_decoding(main, placer, decoding)
    if not isinstance(main, WhisperTranscriber):
        raise ConfigError(
            f"loading {folder.name} to detect languages for model.by_language: expected a "
            "multilingual Whisper checkpoint; use one, or remove by_language"
        )
    transcribers: dict[Path, PartTranscriber] = {folder: main.leaving(elsewhere)}
    for code, path in elsewhere.items():
        transcriber = transcribers.setdefault(path, part_transcriber(path))
        try:
            check_decoding(transcriber, placer, _in_language(decoding, code))
        except ConfigError as error:
            raise ConfigError(f"model.by_language.{code}: {error}") from error
    return transcribers


def _check_mode(decoding: DecodingSettings) -> None:
    if decoding.language_mode == "window" and only_language(decoding) is None:
        raise ConfigError(
            "decoding.language_mode: found window, expected recording or part with "
            "model.by_language; change it, or remove by_language"
        )


def _in_language(decoding: DecodingSettings, code: str) -> DecodingSettings:
    return replace(decoding, language=code, language_mode="recording")
