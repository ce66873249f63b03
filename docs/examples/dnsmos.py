"""How listeners would rate sound, from 1 to 5, by DNSMOS P.835: pip install speechmos.

Source: Reddy, Gopal, Cutler 2022, "DNSMOS P.835"; microsoft/DNS-Challenge, `dnsmos_local.py`.
"""

from importlib.metadata import distribution

import numpy as np
import onnxruntime

WINDOW, STEP = 144_160, 144_000  # 9.01 s and 9 s of samples
# From the network's outputs to scores: signal, background, overall; the highest power first.
CALIBRATION = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class Dnsmos:
    """Takes 0.3 s of CPU time for each 9 s, which shorter audio is repeated to."""

    def __init__(self) -> None:
        # The network alone: speechmos's code needs librosa.
        path = distribution("speechmos").locate_file("speechmos/dnsmos_models/sig_bak_ovr.onnx")
        self.session = onnxruntime.InferenceSession(str(path))

    def __call__(self, samples: np.ndarray) -> dict[str, float | None]:
        names = ("dnsmos_signal", "dnsmos_background", "dnsmos_overall")
        if not len(samples):
            return dict.fromkeys(names)
        starts = range(0, max(1, len(samples) - WINDOW + 1), STEP)
        raw = [self.scores(samples[start : start + WINDOW].clip(-1, 1)) for start in starts]
        return {
            name: float(np.polyval(powers, values).mean())
            for name, powers, values in zip(names, CALIBRATION, np.transpose(raw), strict=True)
        }

    def scores(self, samples: np.ndarray) -> np.ndarray:
        [given] = self.session.get_inputs()
        [[scores]] = self.session.run(None, {given.name: np.resize(samples, (1, WINDOW))})
        return np.asarray(scores)
