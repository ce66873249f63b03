"""How listeners would rate sound, from 1 to 5, by DNSMOS P.835: pip install speechmos.

Source: Reddy, Gopal, Cutler 2022, "DNSMOS P.835"; microsoft/DNS-Challenge, `dnsmos_local.py`.
"""

from collections.abc import Sequence
from importlib.metadata import distribution

import numpy as np
import onnxruntime

RATE_HZ = 16_000
WINDOW, STEP = 144_160, 144_000  # 9.01 s and 9 s of samples
# From the network's outputs to scores: signal, background, overall; the highest power first.
CALIBRATION = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class Dnsmos:
    """Takes 0.3 s of CPU time for each 9 s, which a shorter part is repeated to."""

    name = "dnsmos"
    columns = ("signal", "background", "overall")

    def __init__(self) -> None:
        # The network alone: speechmos's code needs librosa.
        path = distribution("speechmos").locate_file("speechmos/dnsmos_models/sig_bak_ovr.onnx")
        self.session = onnxruntime.InferenceSession(str(path))

    def measure(self, samples: np.ndarray, speech: object) -> np.ndarray:
        """Return the scores of each 9 s; the last window ends with the part."""
        starts = np.arange(0, len(samples), STEP).clip(0, max(0, len(samples) - WINDOW))
        [given] = self.session.get_inputs()
        values = np.empty((len(starts), len(CALIBRATION)), np.float32)
        for row, start in zip(values, starts, strict=True):
            window = np.resize(samples[start : start + WINDOW].clip(-1, 1), (1, WINDOW))
            [[raw]] = self.session.run(None, {given.name: window})
            row[:] = [
                np.polyval(powers, value) for powers, value in zip(CALIBRATION, raw, strict=True)
            ]
        return values

    @staticmethod
    def over(
        values: np.ndarray, spans: Sequence[tuple[float, float]], *, start_s: float
    ) -> dict[str, float | None]:
        """Return the mean of the windows in which the spans lie, by the seconds in each."""
        step_s = STEP / RATE_HZ
        starts_s = np.arange(len(values)) * step_s
        weights = np.zeros(len(values))
        for first_s, last_s in spans:
            inside = np.minimum(last_s, starts_s + step_s) - np.maximum(first_s, starts_s)
            weights += inside.clip(0)
        if not weights.any():
            return dict.fromkeys(Dnsmos.columns)
        means = np.average(values, axis=0, weights=weights)
        return dict(zip(Dnsmos.columns, means.tolist(), strict=True))
