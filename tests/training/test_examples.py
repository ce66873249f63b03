"""Windows as a network takes them: what is said, which sounds are heard when, and how far."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corpus_asr.models.whisper.tokenizer import WhisperTokenizer
from corpus_asr.text.phones import PHONES
from corpus_asr.training.augmentation import Augmentation
from corpus_asr.training.examples import Collate, Examples, ExampleSettings
from corpus_asr.training.labels import LabelWriter
from corpus_asr.training.material import Material, prepare
from corpus_asr.training.passages import Passage
from corpus_asr.training.windows import Packing
from corpus_asr.units import TIMESTAMP_STEP_S
from tests.support.audio import noise, wav_bytes
from tests.support.training_jobs import tiny_student

SETTINGS = ExampleSettings(
    num_mel_bins=80,
    packing=Packing(
        share_windows=True,
        max_tokens=400,
        max_pause_s=0.0,
        partly_filled_share=0.0,
        speeds=(1.0, 1.0),
        no_speech_share=0.0,
        cut_off_share=0.0,
        alone_share=0.0,
        short_windows=0,
    ),
    augmentation=Augmentation(),
    timestamps_share=1.0,
    cut_share=0.0,
    previous_share=0.0,
    misread_share=0.0,
    with_phones=True,
    with_passages=range(0),
    task="transcribe",
    seed=0,
)
PAUSE, AA, T = (PHONES.index(name) for name in ("pau", "aa", "t"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperTokenizer:
    return WhisperTokenizer.from_pretrained(tiny_student(tmp_path_factory.mktemp("place")))


@pytest.fixture(scope="module")
def labels(tokenizer: WhisperTokenizer) -> LabelWriter:
    return LabelWriter(tokenizer, max_tokens=448)


def prepared(passages: list[Passage], labels: LabelWriter, folder: Path) -> Material:
    return prepare(
        passages,
        folder / "cache",
        count_tokens=labels.count,
        max_tokens=400,
        max_gap_s=1.0,
        workers=1,
        timeout_s=60.0,
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, labels: LabelWriter) -> Material:
    """Two seconds, of which the sounds of the first are told, one of them without a name."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "a.wav").write_bytes(wav_bytes(noise(2.0), rate_hz=16_000))
    told = "aa:0.2 ?:0.4 t:1.0"
    passages = [
        Passage(uri=str(folder / "a.wav"), text="one", end_s=1.0, language="en", phones=told),
        Passage(uri=str(folder / "a.wav"), text="two", start_s=1.0, end_s=2.0, language="en"),
    ]
    return prepared(passages, labels, folder)


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_each_position_tells_its_sound_if_it_is_known(
    material: Material, labels: LabelWriter, speed: float
) -> None:
    packing = replace(SETTINGS.packing, speeds=(speed, speed))
    found = Examples(material, labels, replace(SETTINGS, packing=packing))[0].phones
    assert found is not None
    assert found.shape == (1500,)
    slower = round(1 / speed)
    lasts = {AA: 10, -100: 10, T: 30}
    expected = [n for n, positions in lasts.items() for _ in range(slower * positions)]
    expected += [-100] * 50 * slower  # nothing is told of the second passage
    assert found[: len(expected)].tolist() == expected
    assert (found[len(expected) :] == PAUSE).all()


@pytest.mark.parametrize(("length_s", "is_cut"), [(1.4, True), (1.6, False)])
def test_faint_ends_of_short_recordings_are_lost_or_fainter(
    tmp_path: Path, labels: LabelWriter, length_s: float, is_cut: bool
) -> None:
    samples = noise(length_s)[0]
    samples[:4800] *= np.float32(1e-2)
    (tmp_path / "a.wav").write_bytes(wav_bytes(samples[None], rate_hz=16_000))
    passage = Passage(uri=str(tmp_path / "a.wav"), text="six", end_s=length_s, language="en")
    material = prepared([passage], labels, tmp_path)
    whole, cut = (
        Examples(material, labels, replace(SETTINGS, augmentation=Augmentation(cut_close_share=n)))
        for n in (0.0, 1.0)
    )
    ends = [example[0].features[:, 2:25] for example in (whole, cut)]
    assert (ends[1].mean() < ends[0].mean() - 0.1) == is_cut  # 6 dB are 0.15
    assert cut[0].tokens == whole[0].tokens


def test_sounds_are_asked_for_where_all_windows_tell_them(
    material: Material, labels: LabelWriter
) -> None:
    told = Examples(material, labels, SETTINGS)[0]
    not_told = Examples(material, labels, replace(SETTINGS, with_phones=False))[0]
    joined = Collate(0)([told, told]).phones
    assert joined is not None
    assert joined.shape == (2, 1500)
    assert Collate(0)([told, not_told]).phones is None


def test_windows_that_are_cut_are_heard_to_their_last_word(
    material: Material, labels: LabelWriter
) -> None:
    whole = Examples(material, labels, SETTINGS)[0]
    assert whole.num_frames is None
    cut = Examples(material, labels, replace(SETTINGS, cut_share=1.0))[0]
    assert cut.num_frames is not None
    assert 200 <= cut.num_frames <= 304  # of 10 ms, two seconds and up to one of silence
    assert cut.num_frames % 2 == 0
    np.testing.assert_array_equal(cut.features, whole.features)
    assert Collate(0)([cut, whole]).num_frames == 3000


def test_windows_without_speech_are_cut_to_all_lengths(
    material: Material, labels: LabelWriter
) -> None:
    packing = replace(SETTINGS.packing, no_speech_share=1.0)
    examples = Examples(material, labels, replace(SETTINGS, cut_share=1.0, packing=packing))
    silent = [one for one in (examples[n] for n in range(60)) if not one.tokens.spoken]
    lengths = {one.num_frames or 0 for one in silent}
    assert 0 not in lengths
    assert len(lengths) > 10
    assert min(lengths) < 1000 < 2000 < max(lengths) <= 3000


@pytest.mark.parametrize("timestamps", [0.0, 1.0])
def test_what_is_cut_off_is_heard_to_the_end_of_the_window(
    tokenizer: WhisperTokenizer, labels: LabelWriter, tmp_path: Path, timestamps: float
) -> None:
    passages = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.wav"
        path.write_bytes(wav_bytes(noise(20.0), rate_hz=16_000))
        passages.append(Passage(uri=str(path), text=name, language="en"))
    packing = replace(SETTINGS.packing, cut_off_share=1.0)
    settings = replace(
        SETTINGS, packing=packing, cut_share=1.0, timestamps_share=timestamps, with_phones=False
    )
    example = Examples(prepared(passages, labels, tmp_path), labels, settings)[0]
    times = [i for i in example.tokens.ids if i >= tokenizer.timestamp_begin]
    level = example.features.mean(axis=0)
    if timestamps:
        assert len(times) == 3
        assert times[-1] - times[0] == round(20 / TIMESTAMP_STEP_S)
        assert example.num_frames is None
        assert level[2100:].mean() == pytest.approx(level[100:1900].mean(), abs=0.1)
    else:
        assert times == []
        assert example.num_frames is not None
        assert level[2100:].mean() < level[100:1900].mean() - 0.3


def test_what_is_misread_is_learnt_as_it_is(material: Material, labels: LabelWriter) -> None:
    settings = replace(SETTINGS, with_passages=range(1))
    right = Collate(0)([Examples(material, labels, settings)[0]])
    wrong = Collate(0)([Examples(material, labels, replace(settings, misread_share=0.9))[0]])
    assert right.alone is not None
    assert wrong.alone is not None
    for one, other in ((right.whole, wrong.whole), (right.alone, wrong.alone)):
        assert torch.equal(one.labels, other.labels)
        assert not torch.equal(one.inputs, other.inputs)
    assert torch.equal(right.features, wrong.features)


def test_passages_are_also_told_by_themselves(material: Material, labels: LabelWriter) -> None:
    examples = Examples(material, labels, replace(SETTINGS, with_passages=range(1)))
    assert examples[1].alone == ()
    told = examples[0]
    assert len(told.alone) == len(told.tokens.spoken) == 2
    for one, spoken in zip(told.alone, told.tokens.spoken, strict=True):
        [by_itself] = one.spoken
        assert by_itself.letters == spoken.letters
        # 0.1 s before it begins, or where the window does
        assert by_itself.start_s == pytest.approx(min(0.1, spoken.start_s), abs=0.02)
        assert by_itself.end_s - by_itself.start_s == pytest.approx(spoken.end_s - spoken.start_s)
