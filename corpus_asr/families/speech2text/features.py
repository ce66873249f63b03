"""Filter bank features of one part of a recording, in two steps, without torch.

A CPU worker computes the filter bank of a whole part, which is sent as float16. When a window is
cut from it, each mel bin is normalized over that window, as the checkpoint's own extractor does.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corpus_asr.array_types import Float16, Float32
from corpus_asr.families.registry import SETTINGS_FILES, PartFeatures, check_computed
from corpus_asr.families.saved_files import checked, find_saved
from corpus_asr.families.speech2text.config import Speech2TextConfig
from corpus_asr.features.fbank import (
    ENERGY_FLOOR,
    FRAME_SAMPLES,
    kaldi_fbank,
    mean_variance_normalized,
    num_frames,
)
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

# Logarithms of speech are about 5 to 24: subtracting the center halves the rounding error of
# float16. After normalization values are off by at most 2e-3, on average 3e-4 (read English and
# German; without it 3e-3 and 1e-3).
OFFSET = np.float32(12.0)

# Number of whole hops by which a frame extends beyond its start.
_REACH = (FRAME_SAMPLES - 1) // HOP_SAMPLES  # 2

# Defaults of transformers for missing keys.
_DEFAULTS = {
    "sampling_rate": SAMPLE_RATE_HZ,
    "num_mel_bins": 80,
    "dither": 0.0,
    "do_ceptral_normalize": True,
    "normalize_means": True,
    "normalize_vars": True,
}


class Speech2TextPartFeatures:
    """Computes a part's filter bank, and cuts windows from it.

    `means` and `variances`: whether a window's mel bins are normalized to mean 0 and variance 1.
    """

    language_window_frames: ClassVar[int | None] = None
    """None: these checkpoints do not detect languages."""

    def __init__(self, *, num_mel_bins: int = 80, means: bool = True, variances: bool = True):
        self.num_mel_bins = num_mel_bins
        # Windows are normalized when they are cut.
        self.kind = f"kaldi-{num_mel_bins}"
        self._means = means
        self._variances = variances

    @classmethod
    def from_folder(cls, folder: Path) -> "Speech2TextPartFeatures":
        """Read the feature settings of a checkpoint.

        Raises:
            CheckpointError: config.json or the extractor's settings are missing or unreadable, or
                require features that are not computed here.
        """
        config = Speech2TextConfig.from_pretrained(folder)
        path, file_settings = find_saved(folder, SETTINGS_FILES)
        settings = _DEFAULTS | {
            name: file_settings[name] for name in _DEFAULTS.keys() & file_settings.keys()
        }
        computed: dict[str, Any] = {
            "sampling_rate": SAMPLE_RATE_HZ,
            "num_mel_bins": config.input_feat_per_channel * config.input_channels,
            "dither": 0.0,  # noise would make runs differ
        }
        check_computed(settings, computed, path=path, front_end="Kaldi's filter bank of 16 kHz")
        for name in ("do_ceptral_normalize", "normalize_means", "normalize_vars"):
            checked(bool, settings[name], name, path=path)
        normalized = settings["do_ceptral_normalize"]
        return cls(
            num_mel_bins=settings["num_mel_bins"],
            means=normalized and settings["normalize_means"],
            variances=normalized and settings["normalize_vars"],
        )

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, for frames that lie completely within it."""
        pad_value = float(np.log(np.float32(ENERGY_FLOOR)) - OFFSET)
        if num_frames(samples.size) == 0:
            nothing = np.empty((0, self.num_mel_bins), dtype=np.float16)
            return PartFeatures(values=nothing, pad_value=pad_value)
        values = kaldi_fbank(samples, num_mel_bins=self.num_mel_bins)
        # Before the conversion to float16, which is more precise near 0.
        values -= OFFSET
        return PartFeatures(values=values.astype(np.float16), pad_value=pad_value)

    def window(
        self, features: Float16[np.ndarray, "frame mel"], start: int, end: int
    ) -> Float32[np.ndarray, "valid mel"]:
        """Cut the frames between two 10 ms hops, normalized over this window.

        Source: equal to `transformers.Speech2TextFeatureExtractor` on the same samples, except for
        float16 rounding and for constant silence, where that divides by 0.
        """
        # Frames that extend beyond the window contain other audio.
        cut = features[start : max(start, end - _REACH)].astype(np.float32)
        # The mean includes the offset; without it the offset must be added back.
        if not self._means:
            cut += OFFSET
        if not len(cut):
            return cut
        return mean_variance_normalized(cut, means=self._means, variances=self._variances)
