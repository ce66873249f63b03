"""Log-mel features of one part of a recording, in two steps, without torch.

A CPU worker computes the logarithms of a whole part, which are sent as float16. When a window is
cut from it, each mel bin is normalized over that window, as the checkpoint's own extractor does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from corpus_asr.array_types import Float16, Float32
from corpus_asr.families.model_config import CONFIG_NAME, MelBins, Probability
from corpus_asr.families.registry import SETTINGS_FILES, PartFeatures, check_computed
from corpus_asr.families.saved_files import checked, find_saved, read_json_object
from corpus_asr.features.nemo_mel import LOG_OF_SILENCE, NemoAnalysis, log_mel, normalized
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

# Logarithms of speech are about -16 to 2: subtracting the center halves the rounding error of
# float16.
OFFSET = np.float32(-8.0)


@dataclass(frozen=True, slots=True)
class _Encoder:
    num_mel_bins: MelBins = 80


@dataclass(frozen=True, slots=True)
class _Config:
    encoder_config: _Encoder


class ParakeetPartFeatures:
    """Computes a part's log-mel features, and cuts windows from them."""

    language_window_frames: ClassVar[int | None] = None
    """None: these checkpoints do not detect languages."""

    def __init__(self, *, num_mel_bins: int = 80, preemphasis: float = 0.97) -> None:
        self.num_mel_bins = num_mel_bins
        self.kind = f"nemo-{num_mel_bins}-{preemphasis:g}"
        self._analysis = NemoAnalysis(num_mel_bins=num_mel_bins, preemphasis=preemphasis)

    @classmethod
    def from_folder(cls, folder: Path) -> "ParakeetPartFeatures":
        """Read the feature settings of a checkpoint.

        Raises:
            CheckpointError: config.json or the extractor's settings are missing or unreadable, or
                require features that are not computed here.
        """
        path = folder / CONFIG_NAME
        content: _Config = checked(_Config, read_json_object(path), "", path=path)
        num_mel_bins = content.encoder_config.num_mel_bins
        path, settings = find_saved(folder, SETTINGS_FILES)
        computed = {
            "sampling_rate": SAMPLE_RATE_HZ,
            "feature_size": num_mel_bins,
            "hop_length": HOP_SAMPLES,
            "n_fft": 512,
            "win_length": 400,
        }
        settings = {"feature_size": 80, "preemphasis": 0.97} | settings
        check_computed(settings, computed, path=path, front_end="NeMo's log-mel of 16 kHz")
        preemphasis: float | None = checked(
            Probability | None, settings["preemphasis"], "preemphasis", path=path
        )
        return cls(num_mel_bins=num_mel_bins, preemphasis=preemphasis or 0.0)

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, one frame per whole hop."""
        # Before the conversion to float16, which is more precise near 0.
        values = log_mel(samples, self._analysis) - OFFSET
        return PartFeatures(
            values=values.astype(np.float16), pad_value=LOG_OF_SILENCE - float(OFFSET)
        )

    def window(
        self, features: Float16[np.ndarray, "frame mel"], start: int, end: int
    ) -> Float32[np.ndarray, "valid mel"]:
        """Cut the frames between two 10 ms hops, normalized over this window.

        Source: equal to `transformers.ParakeetFeatureExtractor` on the same samples within 0.01,
        except for the first and last frame, which include audio around the window, and for a single
        frame, where that divides by zero.
        """
        # The mean includes the offset.
        return normalized(features[start:end].astype(np.float32))

    def loudness(self, features: Float16[np.ndarray, "frame mel"]) -> Float32[np.ndarray, " frame"]:
        """Return the mean of each frame's logarithms."""
        means: Float32[np.ndarray, " frame"] = features.mean(axis=1, dtype=np.float32)
        return means
