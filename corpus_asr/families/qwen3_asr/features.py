"""Log-mel features of Qwen3-ASR, in two steps, without torch.

A CPU worker computes the logarithms of a whole part, which are sent as float16. When a window is
cut from it, its dynamic range is limited, as the checkpoint's own extractor does with a clip.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from corpus_asr.array_types import Float16, Float32
from corpus_asr.families.model_config import CONFIG_NAME
from corpus_asr.families.qwen3_asr.config import Qwen3ASRConfig
from corpus_asr.families.registry import PartFeatures, check_front_end
from corpus_asr.families.whisper.features import COMPUTED
from corpus_asr.features.mel import DYNAMIC_RANGE, LOG10_FLOOR, OFFSET, SCALE, log10_mel
from corpus_asr.units import HOP_SAMPLES

_SILENCE = (LOG10_FLOOR + OFFSET) / SCALE
_RANGE = DYNAMIC_RANGE / SCALE
_SHORTEST_FRAMES = 50
"""Length in frames of the shortest window: the extractor pads shorter clips with silence."""


class Qwen3ASRPartFeatures:
    """Computes a part's log-mel features, and cuts windows from them."""

    language_window_frames: ClassVar[int | None] = None
    """None: these checkpoints name the language in their answers."""

    def __init__(self, *, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins
        self.kind = f"log10-mel-{num_mel_bins}"

    @classmethod
    def from_folder(cls, folder: Path) -> "Qwen3ASRPartFeatures":
        """Read the feature settings of a checkpoint.

        Raises:
            CheckpointError: config.json is missing or unreadable, or the extractor's settings
                require features that are not computed here.
        """
        config = Qwen3ASRConfig.from_json_file(folder / CONFIG_NAME)
        num_mel_bins = config.audio_config.num_mel_bins
        computed = {**COMPUTED, "feature_size": num_mel_bins, "dither": 0.0}
        computed["n_window"] = config.audio_config.n_window
        check_front_end(folder, computed, front_end="Whisper's log-mel of 16 kHz")
        return cls(num_mel_bins=num_mel_bins)

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, one frame per whole hop."""
        values = np.empty((0, self.num_mel_bins), dtype=np.float32)
        if samples.size >= HOP_SAMPLES:
            values = log10_mel(samples, num_mel_bins=self.num_mel_bins)
        # As scaled, they lose at most 1e-3 in float16.
        values = (values + np.float32(OFFSET)) / np.float32(SCALE)
        return PartFeatures(values=values.astype(np.float16), pad_value=_SILENCE)

    def window(
        self, features: Float16[np.ndarray, "frame mel"], start: int, end: int
    ) -> Float32[np.ndarray, "valid mel"]:
        """Cut the frames between two 10 ms hops, with silence after less than half a second.

        Source: equal to `transformers.Qwen3ASRFeatureExtractor` on the same samples within 1e-3,
        except for the first and last frame, which include audio around the window.
        """
        cut = features[start:end].astype(np.float32)
        if not len(cut):
            return cut
        short = max(0, _SHORTEST_FRAMES - len(cut))
        cut = np.pad(cut, ((0, short), (0, 0)), constant_values=_SILENCE)
        limited: Float32[np.ndarray, "valid mel"] = np.maximum(cut, cut.max() - np.float32(_RANGE))
        return limited
