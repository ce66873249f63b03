"""Log-mel features of one part of a recording, without torch, in two steps.

A CPU worker computes the logarithms of a whole part, which are passed on as float16. Where a window
is cut from it, each mel bin is normalized over that window, as the checkpoint's own extractor does.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from corpus_asr.array_types import Float16, Float32
from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import SETTINGS_FILES, PartFeatures, unlike
from corpus_asr.families.saved_files import find_saved, read_json_object
from corpus_asr.features.nemo_mel import LOG_OF_SILENCE, NemoAnalysis, log_mel, normalized
from corpus_asr.units import HOP_SAMPLES, MOST_MEL_BINS, SAMPLE_RATE_HZ

# Logarithms of speech lie at about -16 to 2: subtracted before they are stored, which halves what
# float16 rounds off.
OFFSET = np.float32(-8.0)


class ParakeetPartFeatures:
    """Compute a part's log-mel, and the windows that are cut from it."""

    language_window_frames: ClassVar[int | None] = None
    """Nobody asks these checkpoints for the language: they do not tell."""

    def __init__(self, *, num_mel_bins: int = 80, preemphasis: float = 0.97) -> None:
        self.num_mel_bins = num_mel_bins
        self.kind = f"nemo-{num_mel_bins}-{preemphasis:g}"
        self._analysis = NemoAnalysis(num_mel_bins=num_mel_bins, preemphasis=preemphasis)

    @classmethod
    def from_folder(cls, folder: Path) -> "ParakeetPartFeatures":
        """Read what a checkpoint was trained on.

        Raises:
            CheckpointError: config.json or the extractor's settings are missing or unreadable, or
                the checkpoint expects features that are not computed here.
        """
        config_path = folder / "config.json"
        encoder = read_json_object(config_path).get("encoder_config")
        num_mel_bins = encoder.get("num_mel_bins", 80) if isinstance(encoder, dict) else None
        if not isinstance(num_mel_bins, int) or not 1 <= num_mel_bins <= MOST_MEL_BINS:
            raise CheckpointError(
                f"reading {config_path}: found num_mel_bins {num_mel_bins!r} in encoder_config, "
                f"expected a whole number from 1 to {MOST_MEL_BINS}; correct the file or fetch the "
                "checkpoint again"
            )
        path, settings = find_saved(folder, SETTINGS_FILES)
        computed = {
            "sampling_rate": SAMPLE_RATE_HZ,
            "feature_size": num_mel_bins,
            "hop_length": HOP_SAMPLES,
            "n_fft": 512,
            "win_length": 400,
        }
        wrong = unlike({"feature_size": 80} | settings, computed)
        preemphasis = settings.get("preemphasis", 0.97)
        if preemphasis is None:
            preemphasis = 0.0
        if not isinstance(preemphasis, int | float) or not 0 <= preemphasis <= 1:
            wrong.append(f"preemphasis {preemphasis!r} (expected a number from 0 to 1)")
        if wrong:
            raise CheckpointError(
                f"reading {path}: found {', '.join(wrong)}; only NeMo's log-mel of 16 kHz is "
                "computed here, with as many bins as config.json names: use a checkpoint trained "
                "on it, or correct the file"
            )
        return cls(num_mel_bins=num_mel_bins, preemphasis=float(preemphasis))

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, one frame per whole hop."""
        # Before float16, whose steps are finer near 0.
        values = log_mel(samples, self._analysis) - OFFSET
        return PartFeatures(
            values=values.astype(np.float16), pad_value=LOG_OF_SILENCE - float(OFFSET)
        )

    def window(
        self, features: Float16[np.ndarray, "frame mel"], start: int, end: int
    ) -> Float32[np.ndarray, "valid mel"]:
        """Cut the frames from one 10 ms hop to another, normalized over themselves.

        Source: equal to `transformers.ParakeetFeatureExtractor` on the same samples within 0.01,
        but for the first and last frame, which hold the audio around the window, and for a single
        frame, where that divides by zero.
        """
        # The mean takes the offset with it.
        return normalized(features[start:end].astype(np.float32))

    def loudness(self, features: Float16[np.ndarray, "frame mel"]) -> Float32[np.ndarray, " frame"]:
        """Return the mean of each frame's logarithms."""
        means: Float32[np.ndarray, " frame"] = features.mean(axis=1, dtype=np.float32)
        return means
