"""Filter bank features of one part of a recording, without torch, in two steps.

A CPU worker computes the filter bank of a whole part, which is passed on as float16. Where a window
is cut from it, each mel bin is normalized over that window, as the checkpoint's own extractor does.
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

# Logarithms of speech lie at about 5 to 24: subtracted before they are stored, which halves what
# float16 rounds off. After normalization a value is off by 2e-3 at most, 3e-4 on average (read
# English and German; without it 3e-3 and 1e-3).
OFFSET = np.float32(12.0)

# Whole hops by which a frame reaches beyond its own start.
_REACH = (FRAME_SAMPLES - 1) // HOP_SAMPLES  # 2

# What transformers takes where the file says nothing.
_DEFAULTS = {
    "sampling_rate": SAMPLE_RATE_HZ,
    "num_mel_bins": 80,
    "dither": 0.0,
    "do_ceptral_normalize": True,
    "normalize_means": True,
    "normalize_vars": True,
}


class Speech2TextPartFeatures:
    """Compute a part's filter bank, and the windows that are cut from it.

    `means` and `variances` say whether a window's mel bins are brought to mean 0 and variance 1.
    """

    language_window_frames: ClassVar[int | None] = None
    """Nobody asks these checkpoints for the language: they cannot tell."""

    def __init__(self, *, num_mel_bins: int = 80, means: bool = True, variances: bool = True):
        self.num_mel_bins = num_mel_bins
        # Windows are normalized when they are cut.
        self.kind = f"kaldi-{num_mel_bins}"
        self._means = means
        self._variances = variances

    @classmethod
    def from_folder(cls, folder: Path) -> "Speech2TextPartFeatures":
        """Read what a checkpoint was trained on.

        Raises:
            CheckpointError: config.json or the extractor's settings are missing or unreadable, or
                the checkpoint expects features that are not computed here.
        """
        config = Speech2TextConfig.from_pretrained(folder)
        path, file_settings = find_saved(folder, SETTINGS_FILES)
        settings = _DEFAULTS | {
            name: file_settings[name] for name in _DEFAULTS.keys() & file_settings.keys()
        }
        computed: dict[str, Any] = {
            "sampling_rate": SAMPLE_RATE_HZ,
            "num_mel_bins": config.input_feat_per_channel * config.input_channels,
            "dither": 0.0,  # noise would make every run another
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
        """Compute the features of one part, those of frames that lie wholly within it."""
        pad_value = float(np.log(np.float32(ENERGY_FLOOR)) - OFFSET)
        if num_frames(samples.size) == 0:
            nothing = np.empty((0, self.num_mel_bins), dtype=np.float16)
            return PartFeatures(values=nothing, pad_value=pad_value)
        values = kaldi_fbank(samples, num_mel_bins=self.num_mel_bins)
        # Before float16, whose steps are finer near 0.
        values -= OFFSET
        return PartFeatures(values=values.astype(np.float16), pad_value=pad_value)

    def window(
        self, features: Float16[np.ndarray, "frame mel"], start: int, end: int
    ) -> Float32[np.ndarray, "valid mel"]:
        """Cut the frames from one 10 ms hop to another, normalized over themselves.

        Source: equal to `transformers.Speech2TextFeatureExtractor` on the same samples, but for the
        rounding to float16, and for silence of one value throughout, where that divides by 0.
        """
        # Frames whose samples reach beyond the window are not of its audio alone.
        cut = features[start : max(start, end - _REACH)].astype(np.float32)
        # The mean takes the offset with it; without one it has to be put back.
        if not self._means:
            cut += OFFSET
        if not len(cut):
            return cut
        return mean_variance_normalized(cut, means=self._means, variances=self._variances)
