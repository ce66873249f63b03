"""Sound: from the right place and version, and never at the server's price."""

import os
import signal
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.errors import DecodeError, FetchError, ItemError
from corpus_asr.failure_kinds import REFUSED_FILE
from corpus_asr.storage.run_state.own_sources import record_sources
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view import sound as sound_module
from corpus_asr.view.excerpts import Excerpts
from corpus_asr.view.sound import MAX_SAMPLES, ExcerptRequest, Sound, Sounds
from tests.support.audio import encode, noise, tone, wav_bytes
from tests.support.runs import of_file, run_of
from tests.support.stores import environment, s3_server

ROW = {"uri": "/a.wav", "etag": None, "size_bytes": None, "duration_s": 10.0, "codec": "pcm_s16le",
       "decode_errors": 0, "clock_restarts": None,
       "audio_track": None, "audio_tracks": None}  # fmt: skip


@pytest.fixture
def sounds(tmp_path: Path) -> Iterator[Sounds]:
    with closing(Sounds(run_of(tmp_path / "output"))) as opened:
        yield opened


def samples(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2").astype(np.float64)


def stretch(
    sounds: Sounds, row: dict[str, Any], start_s: int, stop_s: int, **values: Any
) -> np.ndarray:
    start, stop = (44 + 2 * 16_000 * each for each in (start_s, stop_s))
    return samples(b"".join(sounds.decoded(sounds.of(row), **values).read(start, stop)))


def test_what_browsers_play_is_told_by_container_and_codec() -> None:
    for uri, codec, errors, expected in (
        ("/a.MP3", "mp3float", 0, "audio/mpeg"),
        ("/a.m4a", "aac", 0, "audio/mp4"),
        ("/a.m4a", "alac", 0, None),
        ("/a.opus", "libopus", 0, "audio/ogg"),
        ("https://h/a.webm?x=1", "opus", 0, "video/webm"),
        ("/a.wav", "gsm", 0, None),
        ("/a.aiff", "pcm_s16be", 0, None),
        ("/a.mp3", "mp3float", 3, None),
        ("/a", "mp3float", 0, None),
        ("/a.wav", None, 0, None),
    ):
        sound = Sound(uri=uri, etag=None, size_bytes=None, duration_s=1.0, codec=codec,
                      decode_errors=errors)  # fmt: skip
        assert sound.browser_type == expected, uri


AIFF = {"container": "aiff", "codec": "pcm_s16be", "sample_format": "s16"}
AAC = {"container": "adts", "codec": "aac"}


@pytest.mark.long
@pytest.mark.parametrize(("options", "errors"), [(AIFF, 0), (AAC, 0), (AAC, 1)], ids=str)
def test_any_moment_sounds_as_it_did_when_decoded_from_the_start(
    tmp_path: Path, sounds: Sounds, options: dict[str, str], errors: int
) -> None:
    path = tmp_path / f"a.{options['container']}"
    path.write_bytes(encode(noise(75.0), rate_hz=16_000, **options))
    row = ROW | {"uri": str(path), "duration_s": 75.0, "decode_errors": errors}
    late = stretch(sounds, row, 71, 73)
    whole = stretch(sounds, row, 0, 75)
    assert len(whole) == 75 * 16_000
    assert np.corrcoef(late, whole[71 * 16_000 : 73 * 16_000])[0, 1] > 0.99


def test_one_channel_is_heard_alone(tmp_path: Path, sounds: Sounds) -> None:
    path = tmp_path / "two.wav"
    both = np.concatenate([tone(3.0, hz=300), tone(3.0, hz=1000)])
    path.write_bytes(wav_bytes(both, rate_hz=16_000))
    row = ROW | {"uri": str(path), "duration_s": 3.0}
    for channel in (0, 1):
        transcribed = stretch(sounds, row, 1, 2, channel=channel)
        assert np.corrcoef(transcribed, both[channel][16_000:32_000])[0, 1] > 0.999
    with pytest.raises(DecodeError, match="expected channel 7"):
        stretch(sounds, row, 0, 1, channel=7)


def test_a_recording_that_changed_or_is_gone_is_told(tmp_path: Path, sounds: Sounds) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(tone(1.0), rate_hz=16_000))
    row = ROW | {"uri": str(path), **of_file(path)}
    assert not sounds.changed(sounds.of(row))
    path.write_bytes(wav_bytes(tone(2.0), rate_hz=16_000))
    assert sounds.changed(sounds.of(row))
    first = sounds.as_it_is(sounds.of(row))
    assert b"".join(first.read(0, first.size_bytes)) == path.read_bytes()
    path.unlink()
    with pytest.raises(FetchError, match="not found"):
        sounds.changed(sounds.of(row))
    with pytest.raises(FetchError):
        stretch(sounds, row, 0, 1)


def test_recordings_that_lie_elsewhere_by_now_are_found(tmp_path: Path) -> None:
    path = tmp_path / "here" / "b c.wav"
    path.parent.mkdir()
    path.write_bytes(wav_bytes(tone(1.0), rate_hz=16_000))
    row = ROW | {"uri": "s3://bucket/audio/b c.wav"}
    moved = [("s3://other/", "/nowhere/"), ("s3://bucket/audio/", f"{path.parent}/")]
    with closing(Sounds(run_of(tmp_path / "output"), moved=moved)) as sounds:
        whole = sounds.as_it_is(sounds.of(row))
        assert b"".join(whole.read(0, whole.size_bytes)) == path.read_bytes()


@pytest.mark.slow
def test_recordings_in_a_bucket_are_read_at_the_runs_endpoint(tmp_path: Path) -> None:
    data = wav_bytes(tone(3.0), rate_hz=16_000)
    with s3_server() as s3, environment(s3.environment):
        s3.make_bucket("audio")
        uri = s3.put("audio", "deep/a.wav", data)
        source = {"uri": [uri], "storage_options": {"endpoint_url": s3.endpoint_url}}
        store = run_of(tmp_path / "output")
        record_sources(store, SourceSettings.model_validate(source), ())
        with closing(Sounds(store)) as sounds:
            row = ROW | {"uri": uri, "duration_s": 3.0}
            whole = sounds.as_it_is(sounds.of(row))
            assert b"".join(whole.read(1000, 5000)) == data[1000:5000]
            assert np.abs(stretch(sounds, row, 1, 2) - samples(data[32_044:64_044])).max() <= 2


def foreign(folder: Path) -> OutputStore:
    """Write the settings of a run that read all of this machine, as somebody else can."""
    store = OutputStore(str(folder))
    store.write_json(CONFIG_NAME, {"source": {"uri": ["/"]}})
    return store


@pytest.mark.long
def test_an_output_from_elsewhere_plays_no_file_of_this_machine(tmp_path: Path) -> None:
    path, text = tmp_path / "private.wav", tmp_path / "private.txt"
    path.write_bytes(wav_bytes(tone(2.0), rate_hz=16_000))
    text.write_text("secret")
    with closing(Sounds(foreign(tmp_path / "output"))) as sounds:
        for uri in (str(path), f"file://{path}", str(text), "/no/such/file"):
            row = ROW | {"uri": uri, "duration_s": 2.0}
            for ask in (
                lambda: sounds.as_it_is(sounds.of(row)),  # noqa: B023 - called here
                lambda: sounds.changed(sounds.of(row)),  # noqa: B023
                lambda: stretch(sounds, row, 0, 1),  # noqa: B023
            ):
                with pytest.raises(FetchError, match="--audio-folder") as caught:
                    ask()
                assert caught.value.kind == REFUSED_FILE
    for options in ({"folders": [str(tmp_path)]}, {"moved": [("/there", str(tmp_path))]}):
        with closing(Sounds(foreign(tmp_path / "output"), **options)) as sounds:
            uri = str(path) if "folders" in options else "/there/private.wav"
            whole = sounds.as_it_is(sounds.of(ROW | {"uri": uri}))
            assert b"".join(whole.read(0, whole.size_bytes)) == path.read_bytes()


def test_bytes_that_are_no_audio_are_not_handed_out(tmp_path: Path, sounds: Sounds) -> None:
    for name, data in (
        ("private.txt", b"secret"), ("renamed.wav", b"secret"), ("empty.wav", b""),
        ("page.wav", b"<html><script>alert(1)</script>"), ("half.wav", b"RIFF\xff\xff"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ItemError):
            sounds.as_it_is(sounds.of(ROW | {"uri": str(tmp_path / name)}))


class Crashing(Excerpts):
    """Dies as native code does over what is named `segfault`; runs in a child process."""

    def __call__(self, request: ExcerptRequest) -> Iterator[Any]:
        if "segfault" in request.uri:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield from super().__call__(request)


@pytest.mark.long
def test_a_decoder_that_crashes_costs_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(tone(2.0), rate_hz=16_000))
    row = ROW | {"uri": str(path), "duration_s": 2.0}
    monkeypatch.setattr(sound_module, "EXCERPTS", f"{__name__}:Crashing")
    with closing(Sounds(run_of(tmp_path / "output"))) as sounds:
        with pytest.raises(DecodeError, match="its child process died"):
            stretch(sounds, ROW | {"uri": "/segfault.wav"}, 0, 1)
        assert len(stretch(sounds, row, 0, 1)) == 16_000


def test_a_wav_holds_no_more_than_its_sizes_can_say(sounds: Sounds) -> None:
    for hours, expected_s in ((24, 24 * 3600), (48, MAX_SAMPLES / 16_000)):
        wav = sounds.decoded(sounds.of(ROW | {"duration_s": hours * 3600.0}))
        assert wav.size_bytes == 44 + 2 * round(expected_s * 16_000)
        (header,) = wav.read(0, 44)
        assert struct.unpack_from("<I", header, 4)[0] == wav.size_bytes - 8
        assert struct.unpack_from("<I", header, 40)[0] == wav.size_bytes - 44
