"""How good listeners would find the sound of a part, by Microsoft's DNSMOS P.835.

Samples of a part in, opinion scores of windows of 9 s out. Only the network's file is taken from
the package speechmos, whose code needs librosa. Imports no torch: it runs where audio is decoded.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.onnx_session import session_of
from corpus_asr.audio.sound_quality import MosWindows
from corpus_asr.errors import CheckpointError, install_words
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
SampleSpan = tuple[int, int]

# What the network takes, 9.01 s: 900 frames of 20 ms every 10 ms.
WINDOW_SAMPLES = 144_160
# From one window to the next; their frames follow upon each other.
STEP_SAMPLES = 144_000
_FILE = Path("dnsmos_models", "sig_bak_ovr.onnx")
# From the network's outputs to the scores of listeners, the highest power first: signal,
# background, overall. Source: microsoft/DNS-Challenge, `DNSMOS/dnsmos_local.py` get_polyfit_val.
_CALIBRATION = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class MosNetwork:
    """Scores windows of speech; one takes 0.3 s on one core, and about 200 MiB.

    Raises:
        CheckpointError: the network is not installed, cannot be read, or takes or gives something
            else.

    Source: Reddy, Gopal, Cutler 2022, "DNSMOS P.835: A non-intrusive perceptual objective speech
    quality metric to evaluate noise suppressors". Equal to `speechmos.dnsmos` within 1e-6 on the
    same windows.
    """

    def __init__(self) -> None:
        path = _network_path()
        self._session = session_of(path, what="network of DNSMOS")
        self._input = self._session.get_inputs()[0].name
        given, got = (
            [each.shape[1:] for each in sides]
            for sides in (self._session.get_inputs(), self._session.get_outputs())
        )
        if (given, got) != ([[WINDOW_SAMPLES]], [[len(_CALIBRATION)]]):
            raise CheckpointError(
                f"loading the network of DNSMOS {path}: found inputs {given} and outputs {got}, "
                f"expected [[{WINDOW_SAMPLES}]] and [[3]]; install speechmos 0.0.1.1, or leave out "
                "extract.dnsmos"
            )

    def __call__(
        self, samples: Samples, speech: Sequence[SampleSpan] | None, *, start_sample: int = 0
    ) -> MosWindows:
        """Return the windows of a part that begins at `start_sample` of its recording.

        `speech` holds spans within `samples`; None is all of it.
        """
        starts = window_starts(len(samples), speech, start_sample=start_sample)
        scores = [self._scores(samples[start : start + WINDOW_SAMPLES]) for start in starts]
        values = np.empty((len(starts), 1 + len(_CALIBRATION)), dtype=np.float32)
        values[:, 0] = np.array(starts) / SAMPLE_RATE_HZ
        values[:, 1:] = np.array(scores, dtype=np.float32).reshape(-1, len(_CALIBRATION))
        return MosWindows(values=values)

    def _scores(self, samples: Samples) -> list[float]:
        # One after another: a batch takes as long, and as many times the memory.
        finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0).clip(-1.0, 1.0)
        window = np.resize(finite, (1, WINDOW_SAMPLES))  # a short one is repeated, as by speechmos
        raw = self._session.run(None, {self._input: window})[0][0].tolist()
        return [
            float(np.polyval(powers, value))
            for powers, value in zip(_CALIBRATION, raw, strict=True)
        ]


def window_starts(
    num_samples: int, speech: Sequence[SampleSpan] | None, *, start_sample: int = 0
) -> list[int]:
    """Return where windows begin in a part, ascending; each step with speech has one.

    They lie on a grid of the recording, so that they do not depend on where it was cut, but for the
    first and last of a part, which are moved into it.
    """
    spans = [(0, num_samples)] if speech is None else speech
    steps = {
        step
        for first, last in spans
        if last > first
        for step in range(
            (start_sample + first) // STEP_SAMPLES,
            (start_sample + last - 1) // STEP_SAMPLES + 1,
        )
    }
    latest = max(0, num_samples - WINDOW_SAMPLES)
    return sorted({min(max(step * STEP_SAMPLES - start_sample, 0), latest) for step in steps})


def _network_path() -> Path:
    # Without importing speechmos.
    spec = find_spec("speechmos")
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / _FILE for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    looked = f"no file {paths[0]}" if paths else "no package speechmos"
    raise CheckpointError(
        f"loading the network of DNSMOS: found {looked}, expected that of speechmos; install it "
        f"where audio is decoded: {install_words('dnsmos')}, or leave out extract.dnsmos"
    )
