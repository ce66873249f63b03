"""A larger network's encoder tells sounds where manifests do not."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.errors import ConfigError
from corpus_asr.models.whisper.model import WhisperForConditionalGeneration
from corpus_asr.text.phones import PHONES, write_phones
from corpus_asr.training import sounds
from corpus_asr.training.group import Group
from corpus_asr.training.job import Finetune
from corpus_asr.training.material import SOUNDS_NAME, Material
from corpus_asr.training.sounds import name_sounds
from tests.support.spoken_tones import PAUSE_S, WORD_S, sentences, write_recordings
from tests.support.training_jobs import tiny_student, training

SOUNDS = {"ask": "ae", "country": "k", "wind": "w", "sun": "s"}
TOLD, UNTOLD = 40, 10
STEP_S = 0.02
TEACHER = {"name_sounds": True, "token_weight": 0}


def sounds_of(text: str) -> list[tuple[str, float]]:
    found, at = [("pau", PAUSE_S)], PAUSE_S
    for word in text.split():
        found += [(SOUNDS[word], at + WORD_S), ("pau", at + WORD_S + PAUSE_S)]
        at += WORD_S + PAUSE_S
    return found


@pytest.fixture(autouse=True, scope="module")
def _tones_are_learnt_soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sounds, "_STEPS", 300)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, of which the last ones tell no sounds, and a network to hear them."""
    folder = tmp_path_factory.mktemp("place")
    manifest = write_recordings(folder / "train", sentences(TOLD + UNTOLD, seed=3))
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for row in rows[:TOLD]:
        row["phones"] = write_phones(sounds_of(row["text"]))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tiny_student(folder)
    return folder


def job(place: Path, output: str) -> FinetuneConfig:
    return training(
        place,
        place / "model",
        output,
        training={"phones_weight": 0.2, "steps": 2},
        distillation={"teacher": str(place / "model"), **TEACHER},
    )


@pytest.fixture(scope="module")
def material(place: Path) -> Material:
    return Finetune(job(place, "first"), group=Group()).material


def at_positions(sounds: list[tuple[str, float]], count: int) -> np.ndarray:
    middles = (np.arange(count) + 0.5) * STEP_S
    ends = [end for _, end in sounds]
    return np.array([sounds[min(np.searchsorted(ends, at), len(sounds) - 1)][0] for at in middles])


def test_sounds_that_are_not_told_are_heard(material: Material, place: Path) -> None:
    right, count = 0, 0
    for passage in range(TOLD, TOLD + UNTOLD):
        heard = [
            (PHONES[one.number] if one.number >= 0 else "?", one.end_s)
            for one in material.phones(passage)
        ]
        length = round(heard[-1][1] / STEP_S)
        expected = at_positions(sounds_of(material.text(passage)), length)
        right += int((at_positions(heard, length) == expected).sum())
        count += length
    assert right / count > 0.9  # the edges of tones are heard a position early or late
    account = json.loads((place / "cache" / "train" / "sounds.json").read_text(encoding="utf-8"))
    assert account["named"] == UNTOLD
    assert account["accuracy"] > 0.9


def test_what_is_told_stays_as_it_is(material: Material) -> None:
    for passage in range(TOLD):
        expected = write_phones(sounds_of(material.text(passage)))
        assert material.table["phones"][passage].as_py() == expected


def test_the_teacher_is_asked_once(material: Material, place: Path) -> None:
    path = place / "cache" / "train" / SOUNDS_NAME
    written = path.stat().st_mtime_ns
    again = Finetune(job(place, "again"), group=Group())
    list(again.run())
    assert again.material.table.equals(material.table)
    assert path.stat().st_mtime_ns == written
    config = job(place, "other")
    config = config.model_copy(update={"training": config.training.model_copy(update={"seed": 5})})
    Finetune(config, group=Group())
    assert path.stat().st_mtime_ns != written


@pytest.mark.parametrize(
    ("weight", "teacher"), [(0.0, True), (0.2, False)], ids=["no-weight", "no-teacher"]
)
def test_a_teacher_and_a_weight_are_needed(place: Path, weight: float, teacher: bool) -> None:
    config = training(
        place,
        place / "model",
        "refused",
        training={"phones_weight": weight},
        distillation={"teacher": str(place / "model") if teacher else None, **TEACHER},
    )
    with pytest.raises(ConfigError, match=r"distillation\.name_sounds: found the teacher"):
        Finetune(config, group=Group())


def test_names_that_nobody_knows_are_told(place: Path, tmp_path: Path) -> None:
    manifest = place / "train" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    strange = [row | {"phones": "schwa:0.1"} for row in rows[:4]]
    manifest = manifest.with_name("strange.jsonl")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in strange), encoding="utf-8")
    config = job(place, "strange")
    data = config.data.model_copy(
        update={"train": (str(manifest),), "cache": str(tmp_path / "cache")}
    )
    with pytest.raises(ConfigError, match=r"found no passage with sounds of ARPABET"):
        Finetune(config.model_copy(update={"data": data}), group=Group())


def test_a_teacher_of_other_windows_is_refused(material: Material, tmp_path: Path) -> None:
    folder = tiny_student(tmp_path, max_source_positions=100)
    teacher = WhisperForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"max_source_positions 100, expected 1500"):
        name_sounds(material, tmp_path, teacher, fingerprint="other", seed=0)
