"""Sounds of recordings that tell none, heard by a larger checkpoint's encoder.

In: material of which some passages tell their sounds, and a network. Out: sounds for the others,
in the folder of the material. Two layers on the encoding learn from the former what sounds are;
what they hear in the latter is taken for true where they are fairly sure. Knows no training.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from corpus_asr.errors import ConfigError
from corpus_asr.models.vocabulary import IGNORED_LABEL
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.spectral.mel import log_mel
from corpus_asr.text.phones import PHONES, UNKNOWN, Phone, write_phones
from corpus_asr.training.material import SOUNDS_NAME, Material
from corpus_asr.units import (
    SAMPLE_RATE_HZ,
    TIMESTAMP_STEP_S,
    WINDOW_POSITIONS,
    WINDOW_S,
    WINDOW_SAMPLES,
)

_ACCOUNT_NAME = "sounds.json"
_PAUSE_SAMPLES = SAMPLE_RATE_HZ // 4  # between passages that share a window
_STEP_SAMPLES = round(TIMESTAMP_STEP_S * SAMPLE_RATE_HZ)
_LEARNT_S = 5_400.0  # of passages with sounds: more of them hardly helps two layers
_LEARNT_EVERY = 2  # positions: neighbours say the same
_HELD_OUT = 10  # every tenth window
_HIDDEN, _DROPOUT = 256, 0.2
_STEPS, _BATCH, _RATE, _DECAY = 1_500, 2_048, 1e-3, 0.05
_FURTHEST = 8.0  # standard deviations: single weights of Whisper's encodings are huge
_SURE = 0.4
_UNKNOWN_NAME = "?"


@dataclass(frozen=True, slots=True)
class _Place:
    """A passage in a window."""

    passage: int
    at: int
    """Its first position."""
    positions: int


class Listener(nn.Module):
    """Two layers that tell sounds from an encoding.

    Args:
        seen: what encodings look like.
    """

    def __init__(self, seen: Float32[Tensor, "pos width"]) -> None:
        super().__init__()
        self._mean = seen.mean(0)
        self._spread = seen.std(0) + 1e-3
        self.layers = nn.Sequential(
            nn.Dropout(_DROPOUT),
            nn.Linear(seen.shape[1], _HIDDEN),
            nn.GELU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(_HIDDEN, len(PHONES)),
        )

    def forward(self, states: Float32[Tensor, "pos width"]) -> Float32[Tensor, "pos sound"]:
        """Return scores of sounds."""
        near = ((states - self._mean) / self._spread).clamp(-_FURTHEST, _FURTHEST)
        scores: Tensor = self.layers(near)
        return scores


def name_sounds(
    material: Material,
    folder: Path,
    teacher: WhisperForConditionalGeneration,
    *,
    fingerprint: str,
    seed: int,
) -> None:
    """Write the sounds of all passages into the folder, or keep what an earlier call left there.

    Args:
        material: of that folder; some of its passages tell their sounds.
        folder: where they go, for `Material.with_sounds`.
        teacher: whose encoder hears; the larger the better.
        fingerprint: of the material and the teacher.
        seed: of what is drawn.

    Raises:
        ConfigError: no sound is told that is known here, or the teacher hears no such windows.
        OSError: the folder cannot be written.
    """
    account = folder / _ACCOUNT_NAME
    if account.is_file():
        found = json.loads(account.read_text(encoding="utf-8"))
        if found["fingerprint"] == fingerprint:
            return
    account.unlink(missing_ok=True)
    told = [one for one in range(len(material)) if _knows(material.phones(one))]
    _check(teacher, told)
    hear = _Ears(material, teacher)
    listener, accuracy = _learn(hear, _chosen(material, told, seed), seed)
    named = material.table["phones"].to_pylist()
    others = np.setdiff1d(np.flatnonzero(material.tokens > 0), told).tolist()
    for window in _windows(material, others):
        states = hear(window)
        for place in window:
            part = states[place.at : place.at + place.positions].float()
            named[place.passage] = _heard(listener, part)
    _write(folder / SOUNDS_NAME, pa.table({"phones": pa.array(named, pa.string())}))
    written = {"fingerprint": fingerprint, "named": len(others), "accuracy": accuracy}
    account.write_text(json.dumps(written, indent=2), encoding="utf-8")


def _knows(phones: Sequence[Phone]) -> bool:
    return any(phone.number != UNKNOWN for phone in phones)


def _check(teacher: WhisperForConditionalGeneration, told: Sequence[int]) -> None:
    """Check that there is something to learn from, and someone to hear it."""
    if not told:
        raise ConfigError(
            "distillation.name_sounds: found no passage with sounds of ARPABET in data.train, "
            f"expected names such as {', '.join(PHONES[:4])}; rename those of the manifests, or "
            "set name_sounds to false"
        )
    if teacher.config.max_source_positions != WINDOW_POSITIONS:
        raise ConfigError(
            f"distillation.name_sounds: found a teacher with max_source_positions "
            f"{teacher.config.max_source_positions}, expected {WINDOW_POSITIONS}: windows of "
            f"{WINDOW_S} s; choose another teacher, or set name_sounds to false"
        )


def _write(path: Path, table: pa.Table) -> None:
    # Whoever has the earlier file in memory keeps it.
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as rows:
        rows.write_table(table)
    partial.rename(path)


class _Ears:
    """Hears windows of passages."""

    def __init__(self, material: Material, teacher: WhisperForConditionalGeneration) -> None:
        self.material = material
        self._teacher = teacher

    @torch.no_grad()
    def __call__(self, window: Sequence[_Place]) -> Tensor:
        """Return what the middle and the last of the encoder's blocks say: (pos, twice width)."""
        samples = np.zeros(WINDOW_SAMPLES, np.float32)
        for place in window:
            begin, end = (int(n[place.passage]) for n in (self.material.start, self.material.end))
            first = place.at * _STEP_SAMPLES
            said = self.material.samples(begin, end)[: WINDOW_SAMPLES - first]
            samples[first : first + said.size] = said
        teacher = self._teacher
        features = log_mel(samples, num_mel_bins=teacher.config.num_mel_bins)
        states = teacher.model.encoder(
            torch.from_numpy(features)[None].to(teacher.device, teacher.dtype),
            output_hidden_states=True,
        ).hidden_states
        return torch.cat([states[len(states) // 2][0], states[-1][0]], dim=-1).half().cpu()


def _chosen(material: Material, told: Sequence[int], seed: int) -> list[int]:
    """Return some of the passages that tell their sounds, of all there are."""
    order = np.random.default_rng(seed).permutation(np.asarray(told))
    lengths_s = (material.end - material.start)[order] / SAMPLE_RATE_HZ
    enough = int(np.searchsorted(np.cumsum(lengths_s), _LEARNT_S)) + 1
    return [int(one) for one in order[:enough]]


def _windows(material: Material, passages: Sequence[int]) -> Iterator[list[_Place]]:
    """Yield passages side by side in windows."""
    window: list[_Place] = []
    at = 0
    for passage in passages:
        length = int(material.end[passage] - material.start[passage])
        positions = max(1, -(-length // _STEP_SAMPLES))
        if window and at + positions > WINDOW_POSITIONS:
            yield window
            window, at = [], 0
        window.append(_Place(passage, at, min(positions, WINDOW_POSITIONS)))
        at += positions + _PAUSE_SAMPLES // _STEP_SAMPLES
    if window:
        yield window


def _learn(hear: _Ears, passages: Sequence[int], seed: int) -> tuple[Listener, float]:
    """Return layers that tell sounds, and how often they are right in windows not learnt from."""
    states, sounds, held_out = _examples(hear, passages)
    torch.manual_seed(seed)
    learnt = torch.nonzero(~held_out)[:, 0]
    listener = Listener(states[learnt].float())
    optimiser = torch.optim.AdamW(listener.parameters(), lr=_RATE, weight_decay=_DECAY)
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)
        batch = learnt[torch.randint(len(learnt), (_BATCH,))]
        loss = F.cross_entropy(listener(states[batch].float()), sounds[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
    listener.eval().requires_grad_(False)
    asked = held_out if held_out.any() else ~held_out
    right = listener(states[asked].float()).argmax(1) == sounds[asked]
    return listener, float(right.float().mean())


def _examples(hear: _Ears, passages: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return encodings, the sound at each, and which are held out."""
    states, sounds, held_out = [], [], []
    for number, window in enumerate(_windows(hear.material, passages)):
        heard = hear(window)
        for place in window:
            told = torch.from_numpy(_told(hear.material, place))
            known = torch.nonzero(told != IGNORED_LABEL)[::_LEARNT_EVERY, 0]
            states.append(heard[place.at + known])
            sounds.append(told[known])
            held_out.append(torch.full((len(known),), number % _HELD_OUT == _HELD_OUT - 1))
    return torch.cat(states), torch.cat(sounds), torch.cat(held_out)


def _told(material: Material, place: _Place) -> Int64[np.ndarray, " pos"]:
    """Return the sound at each position of a passage; -100 where it is not known."""
    found = np.full(place.positions, IGNORED_LABEL, np.int64)
    at = 0
    for phone in material.phones(place.passage):
        until = min(round(phone.end_s / TIMESTAMP_STEP_S), place.positions)
        if phone.number != UNKNOWN:
            found[at:until] = phone.number
        at = max(at, until)
    return found


def _heard(listener: Listener, states: Float32[Tensor, "pos width"]) -> str:
    """Return sounds and when each ends, as manifests tell them."""
    shares = F.softmax(listener(states), dim=-1)
    # Nobody speaks so fast that one position is a sound.
    smooth = F.avg_pool1d(shares.T[None], 3, stride=1, padding=1, count_include_pad=False)[0].T
    best, numbers = smooth.max(1)
    names = [
        PHONES[number] if share > _SURE else _UNKNOWN_NAME
        for share, number in zip(best.tolist(), numbers.tolist(), strict=True)
    ]
    ends = [at for at in range(1, len(names)) if names[at] != names[at - 1]] + [len(names)]
    return write_phones([(names[end - 1], end * TIMESTAMP_STEP_S) for end in ends])
