"""From the samples of one part to the features Whisper hears.

In: 16 kHz samples and a checkpoint folder's JSON files. Out: `PartFeatures`. Free of torch, so that
CPU workers stay small. Knows nothing of windows, files of audio or speech.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from corpus_asr.errors import CheckpointError
from corpus_asr.families.family import PartFeatures
from corpus_asr.features.mel import log10_mel, scale_log10_mel
from corpus_asr.units import (
    FFT_SAMPLES,
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    TAIL_FRAMES,
    WINDOW_FRAMES,
)

DEFAULT_NUM_MEL_BINS = 80  # what a config.json without the key means in transformers

# What this front end computes; a checkpoint that was trained on anything else must be refused.
COMPUTED = {"n_fft": FFT_SAMPLES, "hop_length": HOP_SAMPLES, "sampling_rate": SAMPLE_RATE_HZ}


class WhisperPartFeatures:
    """Compute a part's log-mel as openai-whisper does for a whole recording.

    The part counts as followed by silence without end. Frames in which nothing but that silence is
    heard all hold one value, so they are left out and the value is told instead.

    Args:
        num_mel_bins: 80, or 128 for large-v3.

    Source: `whisper/transcribe.py` (`log_mel_spectrogram(audio, padding=N_SAMPLES)`).
    """

    language_window_frames: ClassVar[int | None] = WINDOW_FRAMES

    def __init__(self, *, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins

    @classmethod
    def from_folder(cls, folder: Path) -> "WhisperPartFeatures":
        """Read what a checkpoint was trained on.

        A folder without preprocessor_config.json is taken to use Whisper's own front end.

        Raises:
            CheckpointError: config.json is missing, a file is no JSON object, or the checkpoint
                expects features that are not computed here.
        """
        config = _read_object(folder / "config.json")
        num_mel_bins = config.get("num_mel_bins", DEFAULT_NUM_MEL_BINS)
        if not isinstance(num_mel_bins, int) or num_mel_bins < 1:
            raise CheckpointError(
                f"reading {folder / 'config.json'}: found num_mel_bins {num_mel_bins!r}, expected "
                "a positive whole number; correct the file or fetch the checkpoint again"
            )
        _check_front_end(folder, {**COMPUTED, "feature_size": num_mel_bins})
        return cls(num_mel_bins=num_mel_bins)

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, `len(samples) // HOP_SAMPLES + TAIL_FRAMES` frames."""
        frames = samples.size // HOP_SAMPLES + TAIL_FRAMES
        # As much silence as the last kept frame reaches, one sample more than its mirror needs.
        num_padded = (frames - 1) * HOP_SAMPLES + FFT_SAMPLES
        padded = np.zeros(num_padded, dtype=np.float32)
        padded[: samples.size] = samples
        values = log10_mel(padded, num_mel_bins=self.num_mel_bins)[:frames]  # (frame, mel)
        pad_value = scale_log10_mel(values)
        return PartFeatures(values=values.astype(np.float16), pad_value=pad_value)


def _check_front_end(folder: Path, computed: dict[str, int]) -> None:
    """Raise `CheckpointError` if the checkpoint names other feature settings than `computed`."""
    for name, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "feature_extractor"),
    ):
        path = folder / name
        if not path.is_file():
            continue
        settings = _read_object(path)
        if key is not None:
            settings = settings.get(key, {})
        wrong = [
            f"{setting} {settings[setting]!r} (expected {value})"
            for setting, value in computed.items()
            if settings.get(setting, value) != value
        ]
        if wrong:
            raise CheckpointError(
                f"reading {path}: found {', '.join(wrong)}; only Whisper's own log-mel front end "
                "is computed here: use a checkpoint trained on it, or correct the file"
            )


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"reading {path}: {error}; the file is missing or damaged, fetch the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"reading {path}: found a JSON {type(value).__name__}, expected an object; "
            "fetch the checkpoint again"
        )
    return value
