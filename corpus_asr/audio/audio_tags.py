"""Which sounds are in a part, by an audio tagging network with YAMNet's interface.

Samples of a part in, scores of the classes that are likeliest in its frames out. Where the
network's file comes from it does not know. Imports no torch: it runs where audio is decoded.
"""

import csv
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.onnx_session import session_of
from corpus_asr.audio.sound_quality import FRAME_HOP_S, MUSIC, TaggedFrames
from corpus_asr.errors import CheckpointError
from corpus_asr.units import SAMPLE_RATE_HZ

CLASS_MAP_NAME = "yamnet_class_map.csv"
# What a frame takes: 96 windows of 25 ms, every 10 ms.
# Source: tensorflow/models, `research/audioset/yamnet/params.py`.
FRAME_SAMPLES = 15_600
_HOP_SAMPLES = round(FRAME_HOP_S * SAMPLE_RATE_HZ)
_TOGETHER = 32  # 15 s, of a network that takes any number of frames
# Classes of which scores are kept, those with the highest in a part.
_KEPT = 32
# Speech, what AudioSet has below it, and nothing; its classes of places are no sounds either.
_NO_OTHER_SOUND = {
    "Speech", "Male speech, man speaking", "Female speech, woman speaking",
    "Child speech, kid speaking", "Conversation", "Narration, monologue", "Babbling",
    "Speech synthesizer", "Silence",
}  # fmt: skip
_PLACES = ("Inside, ", "Outside, ")

Samples = Float32[np.ndarray, " sample"]


class AudioTagger:
    """Scores classes of sounds in frames of about a second, every 0.48 s.

    The names of its classes stand next to the network, in `yamnet_class_map.csv`.

    Raises:
        CheckpointError: one of the two cannot be read, or the network takes or gives something
            else.
    """

    def __init__(self, path: Path) -> None:
        names = _class_names(path.with_name(CLASS_MAP_NAME))
        self._session = session_of(path, what="audio tagging network")
        given = self._session.get_inputs()[0]
        self._input, self._shape = given.name, (1,) * (len(given.shape) - 1) + (-1,)
        size = given.shape[-1] if given.shape else None
        self._is_fixed = isinstance(size, int)
        self._together = _TOGETHER
        if isinstance(size, int):
            self._together = 1 + (size - FRAME_SAMPLES) // _HOP_SAMPLES
        size = _num_samples(self._together)
        expected = f"{self._together} frames of {len(names)} scores, 0-1, for {size} samples"
        try:
            outputs = self._outputs(np.zeros(size, dtype=np.float32))
            shapes = [np.shape(each)[-2:] for each in outputs]
            self._output = shapes.index((self._together, len(names)))
            if not np.all(np.abs(outputs[self._output] - 0.5) <= 0.5):
                raise ValueError("other scores")
        except Exception as error:  # onnxruntime has a class for each status, none of them public
            first_line = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"trying the audio tagging network {path}: {first_line}, expected YAMNet's "
                f"interface, {expected}; correct extract.audio_tagger or {CLASS_MAP_NAME}"
            ) from error
        self._music = names.index(MUSIC)
        self._names = names

    def __call__(self, samples: Samples) -> TaggedFrames:
        """Return the frames of a part; the last is filled up with silence."""
        num_frames = 1 + -(-max(0, len(samples) - FRAME_SAMPLES) // _HOP_SAMPLES)
        groups = range(0, num_frames, self._together)
        scores = np.concatenate(
            [self._scores(samples[at * _HOP_SAMPLES :], num_frames - at) for at in groups]
        )
        others = [
            at for at in np.argsort(-scores.max(axis=0)).tolist()
            if at != self._music and self._names[at] not in _NO_OTHER_SOUND
            and not self._names[at].startswith(_PLACES)
        ]  # fmt: skip
        kept = [self._music, *others[: _KEPT - 1]]
        return TaggedFrames(
            names=tuple(self._names[at] for at in kept), values=scores[:, kept].astype(np.float16)
        )

    def _scores(self, samples: Samples, num_frames: int) -> Float32[np.ndarray, "frame label"]:
        num_frames = min(num_frames, self._together)
        size = _num_samples(self._together if self._is_fixed else num_frames)
        window = np.zeros(size, dtype=np.float32)
        known = np.nan_to_num(samples[:size], nan=0.0, posinf=0.0, neginf=0.0)
        window[: len(known)] = known.clip(-1.0, 1.0)
        scores = self._outputs(window)[self._output]
        # A transcript is not to fail for what is no number here.
        given: np.ndarray = np.nan_to_num(scores.reshape(-1, scores.shape[-1])[:num_frames])
        return given.clip(0.0, 1.0)

    def _outputs(self, window: Samples) -> list[np.ndarray]:
        found: list[np.ndarray] = self._session.run(
            None, {self._input: window.reshape(self._shape)}
        )
        return found


def _num_samples(num_frames: int) -> int:
    return FRAME_SAMPLES + (num_frames - 1) * _HOP_SAMPLES


def _class_names(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [row["display_name"] for row in rows]
        numbers = [int(row["index"]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _not_named(path, repr(error)) from error
    if numbers != list(range(len(rows))) or MUSIC not in names:
        raise _not_named(path, f"{len(rows)} classes")
    return names


def _not_named(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"reading the classes of the audio tagging network in {path}: found {found}, expected "
        f"index,mid,display_name in order of index from 0, {MUSIC} among them; put the file that "
        "was published with the network there, or leave out extract.audio_tagger"
    )
