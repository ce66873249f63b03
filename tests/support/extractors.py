"""A scripted extractor: parts without audio files, for tests of what happens around extraction.

The address says what to do: `.../parts=3/silent=1/fail=2/crash=1/bug=1/stuck=1/endless=1`, in parts
from 0; `header=9` claims as many seconds, `digest=9` is the digest of its content.
"""

import ctypes
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.audio.parts import AudioPart
from corpus_asr.config.extraction import NO_SPEAKERS, SpeakerSettings
from corpus_asr.errors import CheckpointError, DecodeError, FetchError
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.stages.measures import Voices, measure_part
from corpus_asr.stages.parts import (
    DONE,
    NO_SPEECH,
    OK,
    DecodeProgress,
    ExtractRequest,
    Message,
    PartRow,
)

PAUSE = "CORPUS_ASR_TEST_EXTRACT_PAUSE_S"
STUCK = "stuck"
# Ray keeps what is larger than some 100 KB in shared memory: 5000 bins make a part a megabyte.
MEL_BINS = "CORPUS_ASR_TEST_MEL_BINS"
MEL = int(os.environ.get(MEL_BINS, "4"))
PART_SAMPLES = 16_000
FRAMES = 102


def make(
    speakers: SpeakerSettings = NO_SPEAKERS, **_: Any
) -> Callable[[ExtractRequest], Iterator[Message]]:
    """Return the scripted extractor, which knows voices if it is told to."""

    def extract(request: ExtractRequest) -> Iterator[Message]:
        for part in _extract(request):
            if speakers.wanted and isinstance(part, dict) and part["status"] != DONE:
                part = part | {"measured": scripted_voices(part)}
            yield part

    return extract


def make_slow(**options: Any) -> Callable[[ExtractRequest], Iterator[Message]]:
    """Return the scripted extractor, pausing before each part as the environment says."""
    pause_s = float(os.environ.get(PAUSE, "0"))
    scripted = make(**options)

    def extract(request: ExtractRequest) -> Iterator[Message]:
        for part in scripted(request):
            time.sleep(pause_s)
            yield part

    return extract


class ScriptedVoices(Voices):
    """Measures windows that are given."""

    def __init__(self, windows: SpeechWindows) -> None:
        self._embedder, self._pad_s = lambda *_: windows, 0.0  # type: ignore[assignment]
        self._segmenter = None


def scripted_voices(part: PartRow) -> list[dict[str, Any]]:
    """Measure ten windows in each tenth of a part with speech: of two voices, by turns of parts."""
    count = 10 if part["speech_spans"] else 0
    start_s = np.arange(count) / 10
    width = np.eye(8, dtype=np.float16)
    windows = SpeechWindows(
        start_s=start_s, end_s=start_s + 0.1, embeddings=width[[part["part"] % 2] * count]
    )
    audio = AudioPart(start_sample=0, samples=np.zeros(1, np.float32), speech=None)
    return measure_part({"corpus_asr.stages.measures:Voices": ScriptedVoices(windows)}, audio)


def make_unusable(**_: Any) -> Callable[[ExtractRequest], Iterator[Message]]:
    """Fail as an extractor does whose checkpoint is unusable."""
    raise CheckpointError("loading the checkpoint: scripted")


def _extract(request: ExtractRequest) -> Iterator[Message]:
    said = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", request.uri)}
    if "header" in said:
        yield DecodeProgress(decoded_s=0.0, expected_s=float(said["header"]))
    for part in range(said.get("parts", 1)):
        if part == said.get("fail"):
            raise DecodeError(f"decoding {request.uri}: scripted", kind="scripted")
        if part == said.get("hang_up"):
            raise FetchError(f"reading {request.uri}: scripted", kind="timeout")
        if part == said.get("denied"):
            raise FetchError(f"reading {request.uri}: 403 scripted", kind="access_denied")
        if part == said.get("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if part == said.get(STUCK):
            ctypes.PyDLL(None).sleep(60)  # PyDLL: with Python's lock held, as native code may
        if part == said.get("bug"):
            raise ZeroDivisionError("scripted bug")
        if part == said.get("memory"):
            raise MemoryError("scripted")
        made = scripted_part(
            part, wanted=part not in request.done_parts, silent=part == said.get("silent")
        )
        yield made | {"decode_s": float("inf")} if part == said.get("endless") else made
    if "digest" in said:
        digest = str(said["digest"])
        yield DecodeProgress(decoded_s=0.0, expected_s=None, content_digest=digest)


def make_telling(**_: Any) -> Callable[[ExtractRequest], Iterator[Message]]:
    """Return an extractor that tells, as the codec, which libraries its parent has loaded."""

    def tell(_: ExtractRequest) -> Iterator[Message]:
        paths = Path(f"/proc/{os.getppid()}/maps").read_text()
        known = ("arrow", "torch", "avcodec", "onnxruntime", "raylet")
        yield scripted_part(0) | {"codec": " ".join(name for name in known if name in paths)}

    return tell


def scripted_part(part: int, *, wanted: bool = True, silent: bool = False) -> PartRow:
    """Return one part whose features are full of its number."""
    spoken = wanted and not silent
    return {
        "part": part,
        "status": (NO_SPEECH if silent else OK) if wanted else DONE,
        "channel": None,
        "part_start_s": part * PART_SAMPLES / 16_000,
        "part_end_s": (part + 1) * PART_SAMPLES / 16_000,
        "num_samples": PART_SAMPLES,
        "speech_s": 0.0 if silent else 0.5,
        "speech_spans": [] if silent else [{"start_s": part + 0.25, "end_s": part + 0.75}],
        "features": np.full((FRAMES, MEL), part, np.float16) if spoken else None,
        "num_mel_bins": MEL,
        "pad_value": -1.5 if spoken else None,
        "language_features": np.full((3000, MEL), 0.5, np.float16) if spoken and part else None,
        "language_window_start_s": 0.25 if spoken else None,
        "codec": "scripted",
        "sample_rate_hz": 16_000,
        "channels": 1,
        "decode_errors": 0,
        "time_corrections": 0,
        "clock_restarts": 0,
        "decode_s": 0.01,
    }
