"""How much of the time there is music, and what else sounds, by a network with YAMNet's interface.

The folder `YAMNET` of the environment has `yamnet.onnx` and `yamnet_class_map.csv`.
"""

import csv
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

RATE_HZ = 16_000
FRAME, HOP = 15_600, 7_680  # 0.975 s and 0.48 s of samples
SPOKEN = ("Speech", "Silence", "Male speech", "Female speech", "Child speech", "Conversation",
          "Narration", "Babbling", "Inside, ", "Outside, ")  # fmt: skip


@functools.cache
def class_names() -> list[str]:
    path = Path(os.environ["YAMNET"]) / "yamnet_class_map.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return [row["display_name"] for row in csv.DictReader(file)]


class Music:
    """Takes some 3 ms of CPU time for each second."""

    name = "music"
    columns = ("share", "other_sound", "other_score")

    def __init__(self) -> None:
        path = Path(os.environ["YAMNET"]) / "yamnet.onnx"
        self.session = onnxruntime.InferenceSession(str(path))

    def measure(self, samples: np.ndarray, speech: object) -> np.ndarray:
        """Return the scores of all classes every 0.48 s."""
        starts = range(0, max(1, len(samples) - FRAME + HOP), HOP)
        scores = [self.scores(samples[start : start + FRAME]) for start in starts]
        return np.stack(scores).astype(np.float16)

    def scores(self, samples: np.ndarray) -> np.ndarray:
        frame = np.zeros(FRAME, np.float32)
        frame[: len(samples)] = samples
        [given] = self.session.get_inputs()
        frames = frame.reshape(-1) if len(given.shape) == 1 else frame[None]
        num_classes = len(class_names())
        for output in self.session.run(None, {given.name: frames}):
            if np.shape(output)[-1] == num_classes:
                scores: np.ndarray = np.asarray(output).reshape(-1, num_classes)[0]
                return scores
        raise ValueError(f"the network gives no scores of {num_classes} classes")

    @staticmethod
    def over(
        values: np.ndarray, spans: Sequence[tuple[float, float]], *, start_s: float
    ) -> dict[str, float | str | None]:
        """Return the share of frames with music, and the likeliest other sound, of the spans."""
        middles_s = (np.arange(len(values)) * HOP + FRAME / 2) / RATE_HZ
        chosen = {
            int(frame)
            for first_s, last_s in spans
            for frame in [
                *np.flatnonzero((middles_s >= first_s) & (middles_s < last_s)),
                np.abs(middles_s - (first_s + last_s) / 2).argmin(),  # of spans of any length
            ]
        }
        if not chosen:
            return dict.fromkeys(Music.columns)
        scores = values[sorted(chosen)].astype(np.float32)
        means, names = scores.mean(axis=0), class_names()
        sounds = [place for place, name in enumerate(names) if not name.startswith(SPOKEN)]
        loudest = max(sounds, key=means.__getitem__)
        return {
            "share": float(np.mean(scores[:, names.index("Music")] >= 0.5)),
            "other_sound": names[loudest],
            "other_score": float(means[loudest]),
        }
