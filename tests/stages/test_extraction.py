import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pytest
import torch

from corpus_asr.audio import decode, vad
from corpus_asr.audio.probe import open_container
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.decoding.jobs import WindowResult
from corpus_asr.errors import DecodeError, EngineError, FetchError
from corpus_asr.families.registry import part_features
from corpus_asr.families.whisper.features import WhisperPartFeatures
from corpus_asr.stages import extraction
from corpus_asr.stages.extraction import PartExtractor
from corpus_asr.stages.measures import measured_columns
from corpus_asr.stages.parts import DONE, DecodeProgress, ExtractRequest, Message, PartRow
from corpus_asr.transcription.whisper_prompt import find_language
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_FRAMES
from tests.support import prompt_formats as languages
from tests.support.audio import DamagedContainer, encode, noise, tone, wav_bytes
from tests.support.corpora import CLIPS, tiny_model
from tests.support.tables import digest_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def extractor(model: Path, **changes: Any) -> PartExtractor:
    settings = ExtractSettings.model_construct(**({"part_s": 30.0} | changes))
    return PartExtractor(folder=str(model), settings=settings)


def write_noise(path: Path, seconds: float, *, num_channels: int = 1) -> str:
    samples = noise(seconds, num_channels=num_channels)
    path.write_bytes(wav_bytes(samples, rate_hz=SAMPLE_RATE_HZ))
    return str(path)


def extract(model: Path, uri: str, *, done: tuple[int, ...] = (), **changes: Any):
    request = ExtractRequest(uri=uri, done_parts=frozenset(done))
    return rows_of(extractor(model, **changes)(request))


def is_part(message: Message) -> TypeGuard[PartRow]:
    return isinstance(message, dict)


def rows_of(messages: Iterable[Message]) -> list[PartRow]:
    return list(filter(is_part, messages))


@pytest.fixture(scope="module")
def speech(model: Path) -> list[PartRow]:
    return extract(model, str(CLIPS / "longer.mp3"))


def test_parts_cover_the_recording_and_hold_their_features(speech: list[PartRow]):
    assert len(speech) > 1
    assert [part["part"] for part in speech] == list(range(len(speech)))
    end = 0
    for part in speech:
        assert part["part_start_s"] == end / SAMPLE_RATE_HZ
        end += part["num_samples"]
        assert part["num_samples"] <= 30 * SAMPLE_RATE_HZ
        assert part["codec"].startswith("mp3")
        if part["features"] is not None:
            assert part["features"].dtype == np.float16
            frames, mel = part["features"].shape
            assert mel == 80
            assert 2 <= frames - part["num_samples"] // HOP_SAMPLES <= 3


def test_the_first_speech_decides_the_language_window_of_every_part(speech: list[PartRow]):
    spoken = [part for part in speech if part["features"] is not None]
    first, others = spoken[0], spoken[1:]
    assert first["speech_spans"]
    assert first["language_features"] is None
    start_s = first["language_window_start_s"]
    assert start_s == pytest.approx(
        first["speech_spans"][0]["start_s"], abs=HOP_SAMPLES / SAMPLE_RATE_HZ
    )
    assert others
    assert start_s is not None
    assert first["features"] is not None
    frame = round((start_s - first["part_start_s"]) * 100)
    expected = first["features"][frame : frame + WINDOW_FRAMES]
    for part in others:
        assert part["language_window_start_s"] == start_s
        assert part["language_features"] is not None
        assert part["language_features"].shape == (WINDOW_FRAMES, 80)
        np.testing.assert_array_equal(part["language_features"][: len(expected)], expected)
        np.testing.assert_array_equal(
            part["language_features"][len(expected) :], np.float16(first["pad_value"])
        )


def test_done_parts_are_told_without_features_and_change_nothing_else(
    model: Path, speech: list[PartRow]
):
    again = extract(model, str(CLIPS / "longer.mp3"), done=(0,))
    assert [part["status"] for part in again] == [DONE] + [part["status"] for part in speech[1:]]
    assert again[0]["features"] is None
    for before, after in zip(speech[1:], again[1:], strict=True):
        for name in ("part_start_s", "speech_spans", "language_window_start_s", "pad_value"):
            assert before[name] == after[name]
        for name in ("features", "language_features"):
            np.testing.assert_array_equal(before[name], after[name])


def test_features_of_further_kinds_are_those_of_their_own_checkpoints(
    model: Path, tmp_path: Path, speech: list[PartRow]
):
    other = tmp_path / "parakeet"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "parakeet_ctc", "encoder_config": {}}')
    (other / "preprocessor_config.json").write_text('{"feature_size": 80}')
    settings = ExtractSettings.model_construct(part_s=30.0)
    kind = part_features(other).kind
    assert kind == "nemo-80-0.97"
    both = PartExtractor(folder=str(model), settings=settings, further_folders={kind: other})
    request = ExtractRequest(uri=str(CLIPS / "longer.mp3"), done_parts=frozenset({0}))
    parts = rows_of(both(request))
    assert not parts[0]["further"]
    alone = extract(other, request.uri)
    for part, first, second in zip(parts[1:], speech[1:], alone[1:], strict=True):
        np.testing.assert_array_equal(part["features"], first["features"])
        if part["features"] is None:
            assert not part["further"]
            continue
        [further] = part["further"]
        assert (further["kind"], further["pad_value"]) == (kind, second["pad_value"])
        np.testing.assert_array_equal(further["features"], second["features"].reshape(-1))


def test_without_detection_everything_is_transcribed_and_the_first_window_tells_the_language(
    model: Path, tmp_path: Path
):
    uri = write_noise(tmp_path / "noise.wav", 45)
    parts = extract(model, uri, vad_filter=False)
    assert len(parts) == 2
    assert all(part["speech_spans"] is None and part["features"] is not None for part in parts)
    assert parts[0]["language_features"] is None
    assert [part["language_window_start_s"] for part in parts] == [0.0, 0.0]
    np.testing.assert_array_equal(
        parts[1]["language_features"][: len(parts[0]["features"])],
        parts[0]["features"][:WINDOW_FRAMES],
    )


def test_later_parts_carry_the_very_windows_the_first_one_is_asked_in(model: Path, tmp_path: Path):
    uri = write_noise(tmp_path / "noise.wav", 200)
    first, *others = extract(model, uri, vad_filter=False, part_s=130.0)
    assert first["features"] is not None
    assert first["pad_value"] is not None
    own = PartRequest(
        recording_id="r", part=0, features=first["features"], num_samples=first["num_samples"],
        pad_value=first["pad_value"], start_s=0.0, speech=None,
    )  # fmt: skip
    asked = find_language(own, languages.prompt_format(), DecodingSettings())
    windows = [next(asked).features.T]
    scores = torch.zeros(1, 50)
    said = WindowResult(tokens=(), logprobs=(), end_logprob=0.0, score=None, scores=scores)
    windows.append(asked.send(said).features.T)
    with pytest.raises(StopIteration):
        asked.send(said)
    assert others
    for part in others:
        np.testing.assert_array_equal(part["language_features"], np.concatenate(windows))


def test_each_channel_has_parts_of_its_own_in_a_fixed_order(model: Path, tmp_path: Path):
    uri = write_noise(tmp_path / "stereo.wav", 45, num_channels=2)
    first = extract(model, uri, channels="each", vad_filter=False)
    second = extract(model, uri, channels="each", vad_filter=False)
    order = [(part["part"], part["channel"], part["part_start_s"]) for part in first]
    assert order == [(part["part"], part["channel"], part["part_start_s"]) for part in second]
    assert [part for part, _, _ in order] == [0, 1, 2, 3]
    for channel in (0, 1):
        mine = [part for part in first if part["channel"] == channel]
        assert sum(part["num_samples"] for part in mine) == 45 * SAMPLE_RATE_HZ
    # One language window for the recording, from the part that came first.
    assert len({part["language_window_start_s"] for part in first}) == 1
    alone = extract(model, uri, channels=1, vad_filter=False)
    assert [(part["channel"], part["channels"]) for part in alone] == [(1, 2)] * 2


def test_how_far_it_is_comes_first_and_every_second(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(extraction, "PROGRESS_EVERY_S", 0.0)
    uri = write_noise(tmp_path / "stereo.wav", 31, num_channels=2)
    own = extractor(model, channels="each", speech_detection="none")
    messages = list(own(ExtractRequest(uri=uri)))
    progress = [each for each in messages if isinstance(each, DecodeProgress)]
    assert isinstance(messages[0], DecodeProgress)
    assert messages[0].decoded_s == 0.0
    assert [each.content_digest for each in progress[-2:]] == [None, digest_of(uri)]
    assert {round(each.expected_s or 0, 1) for each in progress[:-1]} == {62.0}  # of two channels
    decoded = [each.decoded_s for each in progress]
    assert decoded == sorted(decoded)
    assert decoded[-1] == 62.0
    assert len(rows_of(messages)) == 4


def test_a_recording_is_read_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    num_bytes = 0

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal num_bytes
            num_read = super().readinto(buffer)
            num_bytes += num_read
            return num_read

    path = Path(write_noise(tmp_path / "noise.wav", 60))
    monkeypatch.setattr(extraction, "open_binary", lambda uri, _: io.BufferedReader(Counted(uri)))
    list(extractor(model)(ExtractRequest(uri=str(path))))
    assert path.stat().st_size <= num_bytes < 1.2 * path.stat().st_size


def test_many_channels_make_parts_shorter(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(extraction, "MAX_BUFFERED_S", 120.0)
    uri = write_noise(tmp_path / "four.wav", 61, num_channels=4)
    parts = extract(model, uri, channels="each", vad_filter=False, part_s=600.0)
    assert max(part["num_samples"] for part in parts) <= 30 * SAMPLE_RATE_HZ


def test_a_missing_speech_detector_is_found_at_the_start(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing() -> vad.SileroDetector:
        raise EngineError("loading the speech detector: scripted")

    monkeypatch.setattr(extraction, "SileroDetector", missing)
    with pytest.raises(EngineError, match="speech detector"):
        extractor(model)
    extractor(model, vad_filter=False)


def test_a_recording_leaves_nothing_behind_for_the_next(
    model: Path, tmp_path: Path, speech: list[PartRow]
):
    stereo = write_noise(tmp_path / "stereo.wav", 4, num_channels=2)
    shared = extractor(model, channels="each")
    list(shared(ExtractRequest(uri=stereo)))
    abandoned = shared(ExtractRequest(uri=str(CLIPS / "longer.mp3")))
    next(abandoned)
    again = rows_of(shared(ExtractRequest(uri=str(CLIPS / "longer.mp3"))))
    assert [part["speech_spans"] for part in again] == [part["speech_spans"] for part in speech]


def test_what_cannot_be_read_or_decoded_raises_its_kind_and_tells_no_secrets(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(FetchError) as missing:
        extract(model, str(tmp_path / "missing.wav"))
    assert missing.value.kind == "not_found"
    mono, many = (wav_bytes(noise(1, num_channels=n), rate_hz=SAMPLE_RATE_HZ) for n in (1, 65))
    for data, channels, kind in (
        (b"<html></html>", "mix", "not_audio"),
        (mono, 3, "no_such_channel"),
        (many, "each", "too_many_channels"),
    ):
        monkeypatch.setattr(extraction, "open_binary", lambda *_, data=data, **__: io.BytesIO(data))
        with pytest.raises(DecodeError, match=r"https://host/a\.mp3\?\[hidden\]") as caught:
            extract(model, "https://user:pass@host/a.mp3?sig=secret", channels=channels)
        assert caught.value.kind == kind
        messages = f"{caught.value} {caught.value.uri}"
        assert not any(word in messages for word in ("user", "pass", "secret"))


def test_what_comes_before_damage_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = write_noise(tmp_path / "noise.wav", 100)
    monkeypatch.setattr(
        decode,
        "open_container",
        lambda *args, **names: DamagedContainer(open_container(*args, **names), packets=1000),
    )
    parts: list[PartRow] = []
    with pytest.raises(DecodeError, match="damaged after") as caught:
        parts.extend(filter(is_part, extractor(model, vad_filter=False)(ExtractRequest(uri=uri))))
    assert [part["part"] for part in parts] == [0, 1, 2]
    decoded_s = sum(part["num_samples"] for part in parts) / SAMPLE_RATE_HZ
    assert 30 < decoded_s < 90
    assert f"{decoded_s:.1f} s of audio" in str(caught.value)


def test_a_stream_without_samples_is_an_error_and_not_a_recording_without_parts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PartExtractor, "_cut", lambda *_, **__: iter(()))
    with pytest.raises(DecodeError) as caught:
        extract(model, write_noise(tmp_path / "noise.wav", 1))
    assert caught.value.kind == "empty_audio"


def test_features_are_those_of_the_whole_part(model: Path, tmp_path: Path):
    samples = tone(3)
    path = tmp_path / "tone.wav"
    path.write_bytes(wav_bytes(samples, rate_hz=SAMPLE_RATE_HZ, sample_type="flt"))
    (part,) = extract(model, str(path), vad_filter=False)
    expected = WhisperPartFeatures.from_folder(model)(samples[0])
    np.testing.assert_allclose(part["features"], expected.values, atol=2e-3)
    assert part["pad_value"] == pytest.approx(float(expected.pad_value), abs=1e-3)


def test_a_recording_that_decodes_for_too_long_is_kept_up_to_the_limit(model: Path, tmp_path: Path):
    """Silence in FLAC: some kilobytes that decode to minutes, as others do to years."""
    seconds = 300
    data = encode(tone(seconds, amplitude=0.0), rate_hz=SAMPLE_RATE_HZ, container="flac",
                  codec="flac", sample_format="s16")  # fmt: skip
    assert len(data) < seconds * SAMPLE_RATE_HZ * 2 / 100
    path = tmp_path / "bomb.flac"
    path.write_bytes(data)
    parts: list[PartRow] = []
    limited = extractor(model, vad_filter=False, max_duration_h=0.025)
    with pytest.raises(DecodeError, match=r"more than 0\.025 h .* raise the limit") as caught:
        parts.extend(filter(is_part, limited(ExtractRequest(uri=str(path)))))
    assert caught.value.kind == "too_long"
    assert 80 <= sum(part["num_samples"] for part in parts) / SAMPLE_RATE_HZ <= 90
    assert extract(model, str(path), vad_filter=False, max_duration_h=0.1)


def test_a_file_that_is_too_large_is_refused_by_its_size(model: Path, tmp_path: Path):
    uri = write_noise(tmp_path / "noise.wav", 2)
    with pytest.raises(DecodeError, match=r"6\.4e-05 GB, expected at most 6e-05") as caught:
        extract(model, uri, max_file_gb=6e-5)
    assert caught.value.kind == "too_large"


def test_what_was_opened_ahead_is_what_is_extracted(model: Path, tmp_path: Path):
    uris = [write_noise(tmp_path / f"{number}.wav", 1 + number) for number in range(4)]
    missing = str(tmp_path / "missing.wav")
    ours = extractor(model, vad_filter=False)
    order = [uris[0], missing, *uris[1:]]
    for index, uri in enumerate(order):
        request = ExtractRequest(uri=uri, upcoming=tuple(order[index + 1 : index + 3]))
        if uri == missing:
            with pytest.raises(FetchError, match="missing"):
                list(ours(request))
        else:
            (part,) = rows_of(ours(request))
            assert part["num_samples"] == (1 + uris.index(uri)) * SAMPLE_RATE_HZ


def test_fingerprints_are_of_wanted_parts_and_only_where_they_are_asked_for(model: Path):
    clip = str(CLIPS / "longer.mp3")
    for part in extract(model, clip):
        assert [row["name"] for row in part["measured"]] == ["sound"]
    first, *others = extract(model, clip, done=(0,), measures=("fingerprint",))
    assert first["measured"] == ()
    for part in others:
        found = measured_columns(part["measured"], (), (), start_s=0.0)
        words = np.frombuffer(found.pop("fingerprint"), "<u4")
        assert found == {"measures": None}
        seconds = part["num_samples"] / SAMPLE_RATE_HZ
        assert len(words) == pytest.approx(8 * max(0.0, seconds - 1.8), abs=2)
