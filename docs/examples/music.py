"""How much of the time there is music, and what else sounds, by a network with YAMNet's interface.

The folder `YAMNET` of the environment has `yamnet.onnx` and `yamnet_class_map.csv`.
"""

import csv
import os
from pathlib import Path

import numpy as np
import onnxruntime

FRAME, HOP = 15_600, 7_680  # 0.975 s and 0.48 s of samples
SPOKEN = ("Speech", "Silence", "Male speech", "Female speech", "Child speech", "Conversation",
          "Narration", "Babbling", "Inside, ", "Outside, ")  # fmt: skip


class Music:
    """Takes some 3 ms of CPU time for each second."""

    def __init__(self) -> None:
        folder = Path(os.environ["YAMNET"])
        with open(folder / "yamnet_class_map.csv", encoding="utf-8", newline="") as file:
            self.names = [row["display_name"] for row in csv.DictReader(file)]
        self.sounds = [at for at, name in enumerate(self.names) if not name.startswith(SPOKEN)]
        self.session = onnxruntime.InferenceSession(str(folder / "yamnet.onnx"))

    def __call__(self, samples: np.ndarray) -> dict[str, float | str]:
        starts = range(0, max(1, len(samples) - FRAME + HOP), HOP)
        scores = np.stack([self.scores(samples[start : start + FRAME]) for start in starts])
        means = scores.mean(axis=0)
        loudest = max(self.sounds, key=means.__getitem__)
        return {
            "music_share": float(np.mean(scores[:, self.names.index("Music")] >= 0.5)),
            "other_sound": self.names[loudest],
            "other_sound_score": float(means[loudest]),
        }

    def scores(self, samples: np.ndarray) -> np.ndarray:
        frame = np.zeros(FRAME, np.float32)
        frame[: len(samples)] = samples
        [given] = self.session.get_inputs()
        frames = frame.reshape(-1) if len(given.shape) == 1 else frame[None]
        for output in self.session.run(None, {given.name: frames}):
            if np.shape(output)[-1] == len(self.names):
                scores: np.ndarray = np.asarray(output).reshape(-1, len(self.names))[0]
                return scores
        raise ValueError(f"the network gives no scores of {len(self.names)} classes")
