"""Spoken corpora, with programs that pretend to speak and, where installed, with real ones."""

import json
import shutil
import stat
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.errors import ConfigError, DecodeError
from corpus_asr.synthesis.corpus import SETS, Texts, drawn_lines, split_voices, write_corpus
from corpus_asr.synthesis.sounds import sounds_of_espeak, sounds_of_flite
from corpus_asr.synthesis.voices import Manner, Voice, installed_voices, speak
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import decode, noise, wav_bytes

VOICES = [Voice("flite", name) for name in ("awb", "kal16", "rms", "slt")]


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A flite that makes a second of noise between silences, of whatever is said."""
    folder = tmp_path / "programs"
    folder.mkdir()
    wav = folder / "spoken.wav"
    spoken = noise(1.0, rate_hz=8000)
    spoken[:, :1600] = spoken[:, 6400:] = 0.0
    wav.write_bytes(wav_bytes(spoken, rate_hz=8000))
    program = folder / "flite"
    program.write_text(f'#!/bin/sh\nfor out; do :; done\nexec /bin/cp {wav} "$out"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return program


def lines(name: str, seed: int = 0) -> list:
    drawn = drawn_lines(VOICES, Texts(), seed=seed, held_out_share=0.3, set=name)
    return list(islice(drawn, 200))


def test_validation_voices_are_in_no_other_set() -> None:
    voices = {name: {line.voice for line in lines(name)} for name in SETS}
    assert voices["train"]
    assert voices["validation"]
    assert not voices["train"] & voices["validation"]
    assert split_voices(VOICES, 0.0)["validation"]  # never none


def test_written_sentences_are_in_one_set(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(" ".join(f"This is sentence {'x' * n}." for n in range(1, 60)))
    said = Texts(files=[path], written_share=1.0)
    texts = {
        name: {
            line.text
            for line in islice(
                drawn_lines(VOICES, said, seed=0, held_out_share=0.3, set=name),
                200,
            )
            if line.text.startswith("This is sentence")
        }
        for name in SETS
    }
    assert len(texts["train"]) + len(texts["validation"]) == 59
    assert not texts["train"] & texts["validation"]


def test_common_words_alone_are_said(tmp_path: Path) -> None:
    path = tmp_path / "text"
    known = [f"{who} saw {what}." for who in ("Ann", "Ben", "Eve") for what in ("him", "us", "it")]
    path.write_text("\n%\n".join([*known, *known, "Nobody expected porcupines."]))
    texts = Texts(files=[path], common_words=7, written_share=0.5, imitated_share=1.0)
    said = {
        name: {
            line.text
            for line in islice(drawn_lines(VOICES, texts, seed=0, held_out_share=0.3, set=name), 99)
        }
        for name in SETS
    }
    assert said["train"] <= set(known)
    assert said["validation"] <= set(known)
    assert len(said["train"]) > 3


def test_a_seed_decides_everything() -> None:
    assert lines("train") == lines("train")
    assert lines("train") != lines("train", seed=1)


def test_speech_is_brought_to_16_khz_without_silence_around(pretended: Path) -> None:
    samples = speak(VOICES[0], "anything", Manner()).samples
    assert len(samples) == pytest.approx(0.7 * SAMPLE_RATE_HZ, abs=50)  # 0.6 s and what is kept


def test_what_is_faint_at_the_ends_or_high_is_left_out_when_asked(pretended: Path) -> None:
    louder = np.append(np.linspace(0, 0.5, 7900), np.linspace(0.5, 0, 100))
    second = louder * np.sin(np.arange(8000) * 2 * np.pi * 3000 / 8000)
    (pretended.parent / "spoken.wav").write_bytes(wav_bytes(second[None], rate_hz=8000))
    whole, cut = (
        speak(VOICES[0], "six", m).samples for m in (Manner(), Manner(quiet_db=6, kept_s=0))
    )
    assert len(cut) == pytest.approx(0.5 * SAMPLE_RATE_HZ, abs=400)
    assert len(whole) > 0.95 * SAMPLE_RATE_HZ
    low = speak(VOICES[0], "six", Manner(quiet_db=6, kept_s=0, highest_hz=2000)).samples
    assert np.sqrt(np.mean(low**2)) < 0.1 * np.sqrt(np.mean(cut**2))


def test_an_empty_recording_is_told(pretended: Path) -> None:
    empty = wav_bytes(np.zeros((1, 0), np.float32), rate_hz=8000)
    (pretended.parent / "spoken.wav").write_bytes(empty)
    for manner in (Manner(), Manner(highest_hz=2000)):
        with pytest.raises(DecodeError, match="found silence"):
            speak(VOICES[0], "six", manner)


def test_some_lines_are_digits_recorded_alone() -> None:
    texts = Texts(digits_share=0.3)
    drawn = drawn_lines(VOICES, texts, seed=0, held_out_share=0.3, set="train")
    said = list(islice(drawn, 400))
    single = [line for line in said if line.manner.highest_hz is not None]
    assert len(single) == pytest.approx(120, abs=30)
    assert all(line.text.islower() and len(line.text.split()) <= 3 for line in single)
    assert all(line.text[0].isupper() for line in said if line not in single)
    assert [line.number for line in said] == list(range(400))


def test_a_corpus_is_recordings_and_a_manifest(pretended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    drawn = {name: iter(lines(name)) for name in SETS}
    spoken = write_corpus(folder, drawn, {"train": 10 / 3600, "validation": 0.0}, workers=2)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert spoken.failed == 0
    assert spoken.hours["train"] == pytest.approx(
        sum(r["duration_s"] for r in rows) / 3600, abs=1e-5
    )
    assert [row["text"] for row in rows] == [line.text for line in lines("train")[: len(rows)]]
    for row in rows:
        audio = decode((folder / row["uri"]).read_bytes())
        assert audio.shape[1] == pytest.approx(row["duration_s"] * SAMPLE_RATE_HZ, abs=16)


def test_a_program_that_fails_is_told(pretended: Path, tmp_path: Path) -> None:
    pretended.write_text("#!/bin/sh\necho no such voice >&2\nexit 1\n")
    with pytest.raises(DecodeError, match=r"as flite:awb: found no such voice, expected audio"):
        speak(VOICES[0], "anything", Manner())
    drawn = {"train": iter(lines("train"))}
    with pytest.raises(ConfigError, match="none of the first 8 could be spoken"):
        write_corpus(tmp_path / "corpus", drawn, {"train": 0.1}, workers=1)


def test_a_machine_without_voices_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install espeak-ng"):
        installed_voices()


def test_voices_are_chosen_by_name(pretended: Path) -> None:
    found = installed_voices(("*:s*", "flite:kal??"))
    assert [voice.speaker for voice in found] == ["kal16", "slt"]
    with pytest.raises(ConfigError, match=r"called espeak-ng:\*, expected one as flite:awb"):
        installed_voices(("flite:*", "espeak-ng:*"))


@pytest.mark.parametrize("program", ["espeak-ng", "flite", "festival", "rhvoice", "pico2wave"])
def test_real_programs_speak_faster_when_asked(program: str) -> None:
    try:
        voices = installed_voices((f"{program}:*",))
    except ConfigError:
        pytest.skip(f"{program} is not installed")
    voice = next((voice for voice in voices if not voice.speaker.endswith("_hts")), None)
    if voice is None:
        pytest.skip(f"{program} has no voice that speaks faster")
    text = "The north wind and the sun were disputing."
    slow, fast = (speak(voice, text, Manner(speed=speed)).samples.size for speed in (0.8, 1.25))
    assert slow > 1.3 * fast


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speakers_of_every_accent_differ() -> None:
    voices = [v for v in installed_voices() if v.program == "espeak-ng"]
    for accent in {voice.speaker.partition("+")[0] for voice in voices}:
        plain, low = (
            speak(Voice("espeak-ng", speaker), "Hello there.", Manner()).samples
            for speaker in (accent, f"{accent}+m3")
        )
        assert not np.array_equal(plain, low), accent


@pytest.mark.parametrize("program", ["espeak-ng", "flite"])
def test_sounds_are_told_with_the_time_of_each(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    voice = {"espeak-ng": Voice("espeak-ng", "en-us"), "flite": Voice("flite", "slt")}[program]
    speech = speak(voice, "She sees six.", Manner())
    assert speak(voice, "She sees six.", Manner()).sounds == speech.sounds
    names = [name for name, _ in speech.sounds if name != "pau"]
    assert names == ["sh", "iy", "s", "iy", "z", "s", "ih", "k", "s"]
    begun_s = 0.0
    for name, end_s in speech.sounds:
        heard = speech.samples[round(begun_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
        begun_s = end_s
        if name in ("sh", "s", "iy"):
            turns = float(np.mean(np.diff(np.signbit(heard))))
            assert turns < 0.2 if name == "iy" else turns > 0.2, (name, end_s)  # sung or hissed
    assert begun_s == pytest.approx(len(speech.samples) / SAMPLE_RATE_HZ, abs=0.1)


def test_what_espeak_calls_sounds_is_arpabet_here() -> None:
    printed = "0 _:\n100 tS\n250 3:\n400 xx\n"
    assert sounds_of_espeak(printed, rate_hz=100, num_samples=500) == [
        ("pau", 1.0), ("ch", 2.5), ("er", 4.0), ("?", 5.0),
    ]  # fmt: skip
    assert sounds_of_espeak("", rate_hz=100, num_samples=500) == []
    assert sounds_of_flite("pau:0.2 hh:0.25 \n") == [("pau", 0.2), ("hh", 0.25)]
