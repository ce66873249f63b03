"""Extracts one recording's parts: speech spans, features and times. Runs in a child process.

Bytes are read in ranges, decoded as a stream, cut at silences and converted to log-mel features;
memory holds at most about two parts' audio.
"""

import functools
import io
import operator
import time
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from corpus_asr.activity import Activity
from corpus_asr.array_types import Float16
from corpus_asr.audio.decode import DAMAGED, AudioDecoder, open_audio
from corpus_asr.audio.parts import AudioPart, PartCutter, language_window_starts
from corpus_asr.audio.vad import SileroDetector, SpeechCriteria
from corpus_asr.config.decoding import ALL_TRACKS
from corpus_asr.config.extraction import NO_SPEAKERS, ExtractSettings, SpeakerSettings
from corpus_asr.errors import DecodeError
from corpus_asr.families.registry import (
    PartFeatures,
    family_of,
    part_features,
    resolve,
    users_family,
)
from corpus_asr.stages.measures import Measure, measure_part, new_measure, wanted_measures
from corpus_asr.stages.parts import (
    DONE,
    FEATURE_COLUMNS,
    NO_SPEECH,
    OK,
    DecodeProgress,
    ExtractRequest,
    Message,
    PartRow,
    check_size,
    further_rows,
    span_rows,
)
from corpus_asr.storage.stores.filesystem import (
    DEFAULT_STORE,
    StoreOptions,
    open_binary,
)
from corpus_asr.storage.stores.store import retries_so_far
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import FRAMES_PER_SECOND, SAMPLE_RATE_HZ

# Every channel has a part's audio and a detector; more channels would need too much memory.
MAX_CHANNELS_APART = 64
# Audio buffered over all channels; with more channels parts are shorter, but at least 30 s.
MAX_BUFFERED_S = 3600.0
MIN_PART_S = 30.0
PREFETCH_THREADS = 16  # maximum number of expected files
# Interval of progress messages between parts, in seconds.
PROGRESS_EVERY_S = 1.0
NO_FOLDERS: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class _LanguageWindow:
    part: int
    start_s: float
    features: Float16[np.ndarray, "frame mel"]


def _clock() -> tuple[float, float, int]:
    """Return wall time, CPU time and retried requests of this process so far."""
    return time.perf_counter(), time.process_time(), retries_so_far()


class _ExtractionState:
    """Extraction state of one recording."""

    def __init__(
        self,
        settings: ExtractSettings,
        done_parts: Collection[int],
        measures: Mapping[str, Measure],
        *,
        uri: str,
    ) -> None:
        self.settings, self.done_parts, self.measures = settings, done_parts, measures
        self.uri = uri
        self.part = -1
        """Index of the last part."""
        self.spoke = False
        """Whether parts are yielded immediately, without waiting for speech."""
        self.window: _LanguageWindow | None = None
        self.clock = _clock()
        self.silent_tracks: list[int] = []
        """Tracks skipped for lack of speech."""
        self.num_tracks = 1
        """Number of transcribed tracks."""
        self.decoded_before_s = self.decoded_s = 0.0
        """Seconds decoded of the tracks before this one, and in total."""
        self.content_digest: str | None = None

    def progress(self, decoder: AudioDecoder, num_samples: int) -> DecodeProgress:
        """Return the progress after a number of samples of a track."""
        header_s, rows = decoder.info.header_duration_s, decoder.num_channels
        self.decoded_s = self.decoded_before_s + num_samples / SAMPLE_RATE_HZ * rows
        return DecodeProgress(
            decoded_s=self.decoded_s,
            expected_s=None if header_s is None else header_s * rows * self.num_tracks,
        )


class PartExtractor:
    """Extracts parts of recordings with one model family's features.

    Only configuration files of the checkpoint in `folder` are read, and none if a custom
    `recognizer` computes its own features.
    """

    def __init__(
        self,
        *,
        folder: str,
        settings: ExtractSettings,
        store: StoreOptions = DEFAULT_STORE,
        speakers: SpeakerSettings = NO_SPEAKERS,
        languages: Sequence[str] = (),
        recognizer: str | None = None,
        further_folders: Mapping[str, Path] = NO_FOLDERS,
    ) -> None:
        """`further_folders` are checkpoints with additional kinds of features, by kind."""
        family = family_of(Path(folder)) if recognizer is None else users_family(recognizer)
        self._features = resolve(family.part_features).from_folder(Path(folder))
        self._further = {
            kind: part_features(checkpoint_folder)
            for kind, checkpoint_folder in further_folders.items()
        }
        self._store = store
        self._settings = settings
        self._languages = languages
        # One per channel, reused across recordings. The first is created here, so that a missing
        # network is reported before any recording is taken.
        self._detectors = [SileroDetector()] if settings.vad_filter else []
        self._speakers = speakers
        # By class, with options; created here for the same reason.
        self._measures: dict[str, tuple[Mapping[str, Any], Measure]] = {}
        self._usual_measures = self._measures_for(settings, speakers)
        self._prefetcher = FilePrefetcher(self._open, threads=PREFETCH_THREADS)

    def __call__(self, request: ExtractRequest) -> Iterator[Message]:
        """Yield the recording's parts in order, already processed ones without features.

        Also progress, at the start and every second, the digest at the end, and what each part took
        of this process.
        """
        settings = request.settings or self._settings
        uri = redact_uri(request.name or request.uri)  # used only in messages from here on
        measures = self._usual_measures
        if request.settings is not None or request.speakers is not None:
            measures = self._measures_for(settings, request.speakers or self._speakers)
        work = _ExtractionState(settings, request.done_parts, measures, uri=uri)
        if request.upcoming:
            self._prefetcher.expect((request.uri, *request.upcoming))
        with self._prefetcher.take(request.uri) as file:
            opened = functools.partial(
                open_audio,
                file,
                uri=uri,
                channels=settings.channels,
                languages=self._languages if request.languages is None else request.languages,
            )
            if settings.track == ALL_TRACKS:
                yield from self._each_track(opened, work)
            else:
                yield from self._spoken_track(opened, work)
        yield DecodeProgress(
            decoded_s=work.decoded_s, expected_s=None, content_digest=work.content_digest
        )
        if work.part < 0:
            raise DecodeError(
                f"decoding {uri}: found a stream without samples, expected audio; replace it, or "
                "exclude it",
                uri=uri,
                kind="empty_audio",
            )

    def _each_track(
        self, opened: Callable[..., AudioDecoder], work: "_ExtractionState"
    ) -> Iterator[Message]:
        """Yield the parts of the tracks one after the other, to bound memory."""
        with opened(track=ALL_TRACKS) as decoder:
            tracks = decoder.tracks
            if len(tracks) == 1:
                yield from self._track(decoder, work)
                return
        work.num_tracks = len(tracks)
        failure: DecodeError | None = None
        for track in tracks:
            work.window = None  # each has its own language
            work.decoded_before_s = work.decoded_s
            try:
                with opened(track=track.number) as decoder:
                    yield from self._track(decoder, work, number=track.number)
            except DecodeError as error:
                failure = failure or error  # raised after the good parts of other tracks
        if failure is not None:
            raise failure

    def _spoken_track(
        self, opened: Callable[..., AudioDecoder], work: "_ExtractionState"
    ) -> Iterator[Message]:
        """Yield the parts of the best track; of the next one if it has no speech."""
        with opened(track=work.settings.track) as decoder:
            other_numbers = [track.number for track in decoder.wanted[1:]]
            if not other_numbers or not work.settings.vad_filter:
                yield from self._track(decoder, work)
                return
            silent: list[PartRow] = []
            try:
                if (yield from self._if_spoken(decoder, work, held=silent)):
                    return
            except DecodeError:
                if not work.spoke:
                    yield from silent
                raise
        num_parts = work.part
        work.silent_tracks.append(decoder.wanted[0].number)
        for number in other_numbers:
            work.part = -1
            try:
                with opened(track=number) as decoder:
                    if (yield from self._if_spoken(decoder, work, held=[])):
                        return
            except DecodeError:
                if work.spoke:
                    raise
                continue  # the best track was decoded: failure of this one is ignored
            work.silent_tracks.append(number)
        work.part = num_parts
        yield from silent

    def _if_spoken(
        self, decoder: AudioDecoder, work: "_ExtractionState", *, held: list[PartRow]
    ) -> Generator[Message, None, bool]:
        """Yield a track's parts, including those before speech, once speech occurs.

        Returns whether there was speech; if not, all parts are in `held`.
        """
        for message in self._track(decoder, work):
            if isinstance(message, dict) and not work.spoke:
                if message["speech_spans"] == []:
                    held.append(message)
                    continue
                work.spoke = True
                yield from held
            yield message
        return work.spoke

    def _track(
        self, decoder: AudioDecoder, work: "_ExtractionState", *, number: int | None = None
    ) -> Iterator[Message]:
        """Yield the parts of one track; `number` is set if several tracks are transcribed."""
        several = len(decoder.tracks) > 1
        names = tuple(track.name for track in decoder.tracks) if several else None
        taken = decoder.wanted[0].number if several and number is None else None
        for piece in self._cut(decoder, work):
            if isinstance(piece, DecodeProgress):
                yield piece
                continue
            channel, audio = piece
            work.part += 1
            wanted = work.part not in work.done_parts
            speech = _in_seconds(audio.speech)
            spoken = speech is None or bool(speech)
            row: PartRow = {
                "part": work.part,
                "status": (OK if spoken else NO_SPEECH) if wanted else DONE,
                "channel": channel if number is None else number,
                "part_start_s": audio.start_sample / SAMPLE_RATE_HZ,
                "part_end_s": (audio.start_sample + len(audio.samples)) / SAMPLE_RATE_HZ,
                "num_samples": len(audio.samples),
                "speech_s": None if speech is None else sum(end - start for start, end in speech),
                "speech_spans": None if speech is None else span_rows(speech),
                "num_mel_bins": self._features.num_mel_bins,
                **asdict(decoder.info),
                "decode_errors": decoder.decode_errors,
                "time_corrections": decoder.time_corrections,
                "clock_restarts": decoder.clock_restarts,
                "audio_track": taken,
                "audio_tracks": names,
                "silent_tracks": tuple(work.silent_tracks),
                "measured": measure_part(work.measures, audio) if wanted else (),
                **dict.fromkeys((*FEATURE_COLUMNS, "pad_value", "language_window_start_s")),
            }
            if spoken:
                row |= self._part_features(audio, work, wanted=wanted)
            decode_s, cpu_s, retries = map(operator.sub, _clock(), work.clock)
            yield Activity(extract_cpu_s=cpu_s, fetch_retries=int(retries))
            yield row | {"decode_s": decode_s}
            work.clock = _clock()  # excludes the consumer's time for the part

    def _part_features(
        self, audio: AudioPart, work: "_ExtractionState", *, wanted: bool
    ) -> dict[str, Any]:
        """Return the columns of a part with speech that hold features, if it is wanted.

        The first speech determines the language of all parts, so a transcribed part that contains
        it is computed again.
        """
        window_frames = self._features.language_window_frames
        needs_window = work.window is None and window_frames is not None
        if not (wanted or needs_window):
            return {}
        features = self._features(audio.samples)
        if needs_window:
            work.window = _language_window(work.part, audio, features, window_frames)
        if not wanted:
            return {}
        window = work.window
        # The part with the window has its features already.
        carried = None if window is None or window.part == work.part else window.features
        further = {kind: compute(audio.samples) for kind, compute in self._further.items()}
        return {
            "features": features.values,
            "pad_value": float(features.pad_value),
            "language_features": carried,
            "language_window_start_s": None if window is None else window.start_s,
            "further": further_rows(further),
        }

    def _measures_for(
        self, settings: ExtractSettings, speakers: SpeakerSettings
    ) -> Mapping[str, Measure]:
        wanted = wanted_measures(settings, speakers)
        for reference, options in wanted.items():
            if self._measures.get(reference, (None,))[0] != options:
                self._measures[reference] = (options, new_measure(reference, options))
        return {reference: self._measures[reference][1] for reference in wanted}

    def _open(self, uri: str) -> io.BufferedIOBase:
        file = open_binary(uri, self._store)
        try:
            # Checked again, as a manifest may have no sizes.
            num_bytes = file.seek(0, io.SEEK_END)
            file.seek(0)
            check_size(num_bytes, uri=redact_uri(uri), max_file_gb=self._settings.max_file_gb)
        except BaseException:
            file.close()
            raise
        return file

    def _cut(
        self, decoder: AudioDecoder, work: "_ExtractionState"
    ) -> Iterator[tuple[int | None, AudioPart] | DecodeProgress]:
        """Yield (channel, part) as parts are complete, ordered by channel."""
        settings, uri = work.settings, work.uri
        channels = settings.channels
        cutters = self._cutters(decoder.num_channels, settings, uri=uri)
        names = [number if channels == "each" else None for number in range(len(cutters))]
        if isinstance(channels, int):
            names = [channels]
        damage: DecodeError | None = None
        # Counted in samples: headers are unreliable, and some kilobytes can decode to years.
        most = self._settings.max_duration_h * 3600 * SAMPLE_RATE_HZ
        num_samples, said_s = 0, time.monotonic()
        yield work.progress(decoder, num_samples)
        try:
            for chunk in decoder:  # (channel, sample)
                num_samples += chunk.shape[1]
                if num_samples > most:
                    damage = self._too_long(decoder, uri=uri)
                    break
                for name, cutter, samples in zip(names, cutters, chunk, strict=True):
                    for audio in cutter.feed(samples):
                        yield name, audio
                if time.monotonic() - said_s >= PROGRESS_EVERY_S:
                    said_s = time.monotonic()
                    yield work.progress(decoder, num_samples)
        except DecodeError as error:
            if error.kind != DAMAGED:
                raise
            damage = error  # raised after the recording's good parts
        work.progress(decoder, num_samples)
        work.content_digest = decoder.sound_digest or work.content_digest
        for name, cutter in zip(names, cutters, strict=True):
            for audio in cutter.finish():
                yield name, audio
        if damage is not None:
            raise damage

    def _too_long(self, decoder: AudioDecoder, *, uri: str) -> DecodeError:
        claimed_s = decoder.info.header_duration_s
        claim = "claims no duration" if claimed_s is None else f"claims {claimed_s / 3600:.1f} h"
        return DecodeError(
            f"decoding {uri}: more than {self._settings.max_duration_h:g} h of audio (its header "
            f"{claim}), expected at most extract.max_duration_h; the part before is kept: raise "
            "the limit if it is that long",
            uri=uri,
            kind="too_long",
        )

    def _cutters(self, count: int, settings: ExtractSettings, *, uri: str) -> list[PartCutter]:
        if count > MAX_CHANNELS_APART:
            raise DecodeError(
                f"decoding {uri}: {count} channels, expected at most {MAX_CHANNELS_APART} to "
                "transcribe separately; set extract.channels to mix, or to the number of one",
                uri=uri,
                kind="too_many_channels",
            )
        part_s = max(MIN_PART_S, min(settings.part_s, MAX_BUFFERED_S / count))
        detectors: Sequence[SileroDetector | None] = [None] * count
        if settings.vad_filter:  # a cutter resets its detector
            self._detectors += [SileroDetector() for _ in range(count - len(self._detectors))]
            detectors = self._detectors[:count]
        criteria = SpeechCriteria(
            threshold=settings.vad_threshold,
            min_speech_s=settings.vad_min_speech_s,
            min_silence_s=settings.vad_min_silence_s,
            pad_s=settings.vad_pad_s,
        )
        return [
            PartCutter(part_s=part_s, detector=detector, criteria=criteria)
            for detector in detectors
        ]


def _language_window(
    part: int, audio: AudioPart, features: PartFeatures, window_frames: int
) -> _LanguageWindow:
    """Cut the windows used to detect this part's language."""
    start_s = audio.start_sample / SAMPLE_RATE_HZ
    starts_s = language_window_starts(
        _in_seconds(audio.speech),
        start_s=start_s,
        end_s=(audio.start_sample + len(audio.samples)) / SAMPLE_RATE_HZ,
    )
    # Padded here with this part's silence: the parts that receive them have another floor.
    shape = (len(starts_s), window_frames, features.values.shape[1])
    padded = np.full(shape, features.pad_value, dtype=np.float16)
    for window, window_start_s in zip(padded, starts_s, strict=True):
        first_frame = round((window_start_s - start_s) * FRAMES_PER_SECOND)
        values = features.values[first_frame : first_frame + window_frames]
        window[: len(values)] = values
    return _LanguageWindow(part=part, start_s=starts_s[0], features=padded.reshape(-1, shape[2]))


def _in_seconds(
    spans: tuple[tuple[int, int], ...] | None,
) -> tuple[tuple[float, float], ...] | None:
    if spans is None:
        return None
    return tuple((start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ) for start, end in spans)


Opener = Callable[[str], io.BufferedIOBase]


class FilePrefetcher:
    """Opens files in advance. For use by one thread."""

    def __init__(self, opener: Opener, *, threads: int) -> None:
        self._opener = opener
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._files: dict[str, Future[io.BufferedIOBase]] = {}

    def expect(self, uris: Iterable[str]) -> None:
        """Start opening these files, and close those opened before that are not among them."""
        wanted = dict.fromkeys(uris)
        for uri in [uri for uri in self._files if uri not in wanted]:
            file = self._files.pop(uri)
            if not file.cancel():
                file.add_done_callback(_close)
        for uri in wanted:
            if uri not in self._files:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self._threads, "open-ahead")
                self._files[uri] = self._executor.submit(self._opener, uri)

    def take(self, uri: str) -> io.BufferedIOBase:
        """Return a file, opened now if it was not expected; the caller closes it."""
        file = self._files.pop(uri, None)
        return self._opener(uri) if file is None else file.result()


def _close(file: Future[io.BufferedIOBase]) -> None:
    if file.exception() is None:
        file.result().close()
