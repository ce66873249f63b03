"""Log-mel features of one part of a recording, without torch."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.families.model_config import CONFIG_NAME, MelBins
from corpus_asr.families.registry import PartFeatures, check_front_end
from corpus_asr.families.saved_files import checked, read_json_object
from corpus_asr.features.mel import log10_mel, scale_log10_mel
from corpus_asr.units import (
    FFT_SAMPLES,
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    TAIL_FRAMES,
    WINDOW_FRAMES,
)

# Defaults of transformers for missing keys of config.json.
DEFAULT_NUM_MEL_BINS = 80

# Settings of this front end; checkpoints with other settings are rejected.
COMPUTED = {"n_fft": FFT_SAMPLES, "hop_length": HOP_SAMPLES, "sampling_rate": SAMPLE_RATE_HZ}


class WhisperPartFeatures:
    """Computes a part's log-mel features as openai-whisper does for a whole recording.

    The part counts as followed by infinite silence. Frames of that silence only all have one value,
    so they are dropped and the value is returned separately.

    Source: `whisper/transcribe.py` (`log_mel_spectrogram(audio, padding=N_SAMPLES)`).
    """

    language_window_frames: ClassVar[int | None] = WINDOW_FRAMES

    def __init__(self, *, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins
        self.kind = f"whisper-{num_mel_bins}"

    @classmethod
    def from_folder(cls, folder: Path) -> "WhisperPartFeatures":
        """Read the feature settings of a checkpoint.

        A folder without preprocessor_config.json is assumed to use Whisper's own front end.

        Raises:
            CheckpointError: config.json is missing, a file is not a JSON object, or the
                features required are not computed here.
        """
        path = folder / CONFIG_NAME
        num_mel_bins = read_json_object(path).get("num_mel_bins", DEFAULT_NUM_MEL_BINS)
        checked(MelBins, num_mel_bins, "num_mel_bins", path=path)
        computed = {**COMPUTED, "feature_size": num_mel_bins}
        check_front_end(folder, computed, front_end="Whisper's own log-mel front end")
        return cls(num_mel_bins=num_mel_bins)

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Compute the features of one part, `len(samples) // HOP_SAMPLES + TAIL_FRAMES` frames."""
        frames = samples.size // HOP_SAMPLES + TAIL_FRAMES
        # Silence up to the end of the last kept frame, plus one sample for its reflection.
        num_padded = (frames - 1) * HOP_SAMPLES + FFT_SAMPLES
        padded = np.zeros(num_padded, dtype=np.float32)
        padded[: samples.size] = samples
        values = log10_mel(padded, num_mel_bins=self.num_mel_bins)[:frames]  # (frame, mel)
        pad_value = scale_log10_mel(values)
        # Halves the memory of queues and GPU; values of -1.5 to 2 lose at most 1e-3.
        return PartFeatures(values=values.astype(np.float16), pad_value=pad_value)
