"""Frames of every sample format to 16 kHz rows, equal to libav's own conversion.

Recordings begin, pause and go on when players show it: the oracle is libav's own filter,
`aresample=async=1:first_pts=0`.
"""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from av.filter.graph import Graph

from corpus_asr.audio.decode import AudioDecoder, open_audio
from corpus_asr.audio.frames import (
    EachChannel,
    FrameSpan,
    MonoMixer,
    mono_shares,
    row_maker,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import frame_of, level, noise
from tests.support.films import stored_s

# libswresample works in float32 either way; the oracle converts and resamples in one call.
SAME_MATHS = 2e-6
# Reading n bits, the last bit is all that may differ.
LAST_BIT = {"u8": 2**-7, "s16": 2**-15, "s32": 1e-7, "s64": 1e-7, "flt": 1e-7, "dbl": 1e-7}


def converted(frames, *, channels="each", num_rows=None) -> np.ndarray:
    run = FrameSpan(frames[0], channels=channels, num_rows=num_rows or frames[0].layout.nb_channels)
    pieces = []
    for frame in frames:
        assert run.fits(frame)
        run.feed(frame)
        pieces += list(run.full_blocks())
    return np.concatenate([*pieces, *run.finish()], axis=1)


@pytest.mark.parametrize("planar", ["", "p"])
@pytest.mark.parametrize("sample_format", ["u8", "s16", "s32", "s64", "flt", "dbl"])
@pytest.mark.parametrize(("layout", "num_channels"), [("mono", 1), ("stereo", 2), ("7.1", 8)])
def test_every_sample_format_keeps_its_values(sample_format, planar, layout, num_channels):
    # Where the format can hold them, loud samples are not clipped.
    gain = 40 if sample_format in ("flt", "dbl") else 1
    samples = gain * noise(0.1, num_channels=num_channels)
    frame = frame_of(samples, rate_hz=16000, layout=layout, sample_format=sample_format + planar)
    np.testing.assert_allclose(converted([frame]), samples, atol=LAST_BIT[sample_format])


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_resampling_equals_libav(rate_hz):
    samples = noise(2.5, rate_hz=rate_hz)
    oracle = av.AudioResampler(format="flt", layout="mono", rate=16000)
    whole = frame_of(samples, rate_hz=rate_hz, layout="mono")
    expected = np.concatenate(
        [f.to_ndarray()[0] for f in [*oracle.resample(whole), *oracle.resample(None)]]
    )
    found = converted([frame_of(samples, rate_hz=rate_hz, layout="mono")])
    assert found.shape == (1, len(expected))
    assert len(expected) == pytest.approx(2.5 * 16000, abs=2)
    np.testing.assert_allclose(found[0], expected, atol=SAME_MATHS)


@pytest.mark.parametrize("size", [1, 160, 1152, 44101])
def test_the_result_does_not_depend_on_the_frames_sizes(size):
    # Cancelling for its second half: which blocks are mixed must not depend on the frames either.
    speech = noise(2.2, rate_hz=44100)[0, : 20 * 4410 + 3]
    speech = speech if size > 1 else speech[:2000]
    other = np.where(np.arange(len(speech)) < len(speech) // 2, speech, -speech)
    samples = np.stack([speech, other])
    whole = frame_of(samples, rate_hz=44100, layout="stereo")
    frames = [
        frame_of(samples[:, start : start + size], rate_hz=44100, layout="stereo")
        for start in range(0, len(speech), size)
    ]
    expected = converted([whole], channels="mix", num_rows=1)
    np.testing.assert_array_equal(converted(frames, channels="mix", num_rows=1), expected)


def test_other_rates_formats_and_channels_do_not_fit():
    samples = noise(0.1, num_channels=2)
    frame = frame_of(samples, rate_hz=16000, layout="stereo")
    run = FrameSpan(frame, channels="mix", num_rows=1)
    assert run.fits(frame_of(samples, rate_hz=16000, layout="stereo"))
    assert not run.fits(frame_of(samples, rate_hz=8000, layout="stereo"))
    assert not run.fits(frame_of(samples[:1], rate_hz=16000, layout="mono"))
    assert not run.fits(frame_of(samples, rate_hz=16000, layout="stereo", sample_format="s16"))


@pytest.mark.parametrize("sample_format", ["flt", "fltp", "dbl"])
def test_samples_that_are_no_numbers_become_silence_and_spread_nowhere(sample_format):
    samples = noise(0.1, num_channels=2).astype(np.float64)
    bad = samples.copy()
    bad[0, 7], bad[1, 9], bad[1, 11] = np.nan, np.inf, -np.inf
    expected = np.where(np.isfinite(bad), samples, 0)
    with np.errstate(all="ignore"):
        frame = frame_of(bad.astype(np.float32), rate_hz=16000, layout="stereo",
                         sample_format=sample_format)  # fmt: skip
    np.testing.assert_allclose(converted([frame]), expected, atol=1e-7)


S16_STEP = 2 / 32768  # the oracle computes in 16-bit integers


@pytest.mark.parametrize("layout", ["stereo", "3.0", "quad", "5.1", "5.1(side)", "7.1"])
def test_the_shares_are_those_libav_mixes_integers_with(layout):
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    for index, share in enumerate(mono_shares(names)):
        alone = np.zeros((1024, len(names)), dtype=np.int16)
        alone[:, index] = 16384
        frame = av.AudioFrame.from_ndarray(alone.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = 16000
        mixed = av.AudioResampler(format="s16", layout="mono").resample(frame)[0].to_ndarray()
        assert mixed[0, 512] / 16384 == pytest.approx(share, abs=S16_STEP)


def test_unknown_speakers_share_equally():
    assert mono_shares(["NONE"] * 64) == pytest.approx(np.full(64, 1 / 64))
    assert mono_shares(["LFE"]) == pytest.approx([1.0])


@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_channels_that_cancel_give_the_louder_one(offset):
    speech = noise(1)[0]
    block = np.stack([speech, -1.01 * speech]) + np.float32(offset)
    mixed = MonoMixer(["FL", "FR"])(block)
    np.testing.assert_array_equal(mixed[0], block[1])


def test_the_channel_stays_chosen_while_the_mix_is_poor_and_until_it_falls_silent():
    speech = noise(1)[0]
    mixer = MonoMixer(["FL", "FR", "BL", "BR"])
    silent = np.zeros_like(speech)
    # The second block cancels to 25 dB only, and the other channel is a little louder in it.
    for right in (-0.99, -1.08):
        block = np.stack([speech, np.float32(right) * speech, silent, silent])
        np.testing.assert_array_equal(mixer(block)[0], block[0])
    later = np.stack([silent, silent, speech, -speech])
    assert level(mixer(later)) == level(speech)
    in_phase = np.stack([speech] * 4)
    np.testing.assert_allclose(mixer(in_phase)[0], speech, atol=1e-7)


def test_silence_and_absurdly_loud_samples_are_mixed_quietly():
    mixer = MonoMixer(["FL", "FR"])
    assert not mixer(np.zeros((2, 100), dtype=np.float32)).any()
    assert mixer(np.zeros((2, 0), dtype=np.float32)).shape == (1, 0)
    loud = np.full((2, 100), 1e30, dtype=np.float32)
    np.testing.assert_allclose(mixer(loud), 1e30, rtol=1e-6)


def test_a_channel_that_a_later_stretch_lacks_is_mixed():
    block = noise(1, num_channels=2)
    second, only = (row_maker(1, names, num_rows=1) for names in (["FL", "FR"], ["FC"]))
    np.testing.assert_array_equal(second(block), block[1:])
    np.testing.assert_array_equal(only(block[:1]), block[:1])


def test_each_channel_keeps_its_row_when_the_channels_change():
    block = noise(1, num_channels=3)
    np.testing.assert_array_equal(EachChannel(3, ["FL", "FR", "FC"])(block), block)
    fewer = EachChannel(3, ["FC"])(block[:1])
    np.testing.assert_array_equal(fewer[0], block[0])
    assert not fewer[1:].any()
    more = EachChannel(2, ["NONE"] * 3)(block)
    np.testing.assert_array_equal(more[0], block[0])
    np.testing.assert_allclose(more[1], block[1:].mean(axis=0), atol=1e-7)


RATE_HZ = 48_000
CODECS = {
    "flv": ("aac", "fltp", "flv"), "matroska": ("libopus", "flt", "mpeg4"),
    "mov": ("aac", "fltp", "mpeg4"), "mp4": ("aac", "fltp", "mpeg4"),
    "mpegts": ("aac", "fltp", "mpeg4"), "ogg": ("libopus", "flt", None),
    "webm": ("libopus", "flt", "libvpx"),
}  # fmt: skip
TIMED = [name for name in CODECS if name != "ogg"]
# Of lossy codecs, whose first and last frames fade.
NEAR_S = 0.05
WRAP_S = 2**33 / 90_000  # of the clock of MPEG-TS
Spans = Sequence[tuple[float, float]]
"""When a tone is presented, and for how long."""


def recording(
    container: str,
    spans: Spans,
    *,
    picture: bool = True,
    shift_s: float = 0.0,
    sound: tuple[str, str] | None = None,
    picture_as: str | None = None,
    **options: str,
) -> bytes:
    """Write tones at their times, and from the start a picture; `options` are the container's."""
    codec, sample_format, picture_codec = CODECS[container]
    codec, sample_format = sound or (codec, sample_format)
    picture_codec = picture_as or picture_codec
    rate_hz = 44_100 if container == "flv" else RATE_HZ
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=options) as output:
        packets: list[Any] = []
        video: Any = None
        if picture and picture_codec:
            video = output.add_stream(picture_codec, rate=10)
        audio: Any = output.add_stream(codec, rate=rate_hz, layout="mono")
        if video is not None:
            video.width = video.height = 16
            video.pix_fmt = "yuv420p"
            for number in range(int(10 * max(start_s + length_s for start_s, length_s in spans))):
                image = av.VideoFrame(16, 16, "yuv420p")
                image.pts, image.time_base = number + round(10 * shift_s), Fraction(1, 10)
                packets += video.encode(image)
            packets += video.encode(None)
        audio.codec_context.open()
        size = audio.codec_context.frame_size or 1024
        for start_s, length_s in spans:
            times_s = np.arange(size * (int(length_s * rate_hz) // size)) / rate_hz
            tone = 0.3 * np.sin(2 * np.pi * 440 * times_s).astype(np.float32)
            if sample_format == "s16":
                tone = (tone * 32_767).astype(np.int16)
            for first in range(0, len(tone), size):
                frame = av.AudioFrame.from_ndarray(
                    tone[np.newaxis, first : first + size], format=sample_format, layout="mono"
                )
                frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
                frame.pts = round((start_s + shift_s) * rate_hz) + first
                packets += audio.encode(frame)
        packets += audio.encode(None)
        output.mux(sorted(packets, key=stored_s))
    return file.getvalue()


def tones(samples: np.ndarray) -> list[float]:
    """Return when tones begin and end, in seconds, to a hundredth."""
    block = SAMPLE_RATE_HZ // 100
    blocks = np.abs(samples[: len(samples) // block * block]).reshape(-1, block).max(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], blocks > 0.05, [0]])))
    found: list[float] = (edges / 100).tolist()
    return found


def decoded(decoder: AudioDecoder) -> np.ndarray:
    found: np.ndarray = np.concatenate([rows[0] for rows in decoder])
    return found


def shown(data: bytes) -> list[float]:
    """Return when tones begin and end by libav's filter, from the container's start."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.audio[0]
        origin_s = (container.start_time or 0) / av.time_base
        graph = Graph()
        source = graph.add_abuffer(template=stream)
        placed = graph.add("aresample", "async=1:first_pts=0")
        mono = graph.add(
            "aformat", f"sample_rates={SAMPLE_RATE_HZ}:channel_layouts=mono:sample_fmts=flt"
        )
        sink = graph.add("abuffersink")
        for one, other in pairwise((source, placed, mono, sink)):
            one.link_to(other)
        graph.configure()

        def pulled() -> Iterator[np.ndarray]:
            while True:
                try:
                    found: Any = graph.pull()
                    yield found.to_ndarray()[0]
                except (av.error.BlockingIOError, av.error.EOFError):
                    return

        pieces: list[np.ndarray] = []
        for frame in container.decode(stream):
            assert frame.pts is not None
            assert frame.time_base is not None
            frame.pts -= round(origin_s / frame.time_base)
            graph.push(frame)
            pieces += pulled()
        graph.push(None)
        pieces += pulled()
    return tones(np.concatenate(pieces))


@pytest.mark.parametrize("container", TIMED)
@pytest.mark.parametrize(
    ("spans", "corrections"),
    [([(4.0, 2.0)], 0), ([(0.0, 2.0), (5.0, 1.0)], 1)],
    ids=["begins later than the picture", "has a gap"],
)
def test_a_tone_is_where_a_player_shows_it(container: str, spans: Spans, corrections: int) -> None:
    data = recording(container, spans)
    decoder = open_audio(io.BytesIO(data), uri=f"talk.{container}")
    found = tones(decoded(decoder))
    edges = [edge_s for start_s, length_s in spans for edge_s in (start_s, start_s + length_s)]
    assert found == pytest.approx(edges, abs=NEAR_S)
    assert found == pytest.approx(shown(data), abs=0.01)
    assert decoder.time_corrections == corrections


@pytest.mark.parametrize(
    ("container", "picture"),
    [
        *((container, "libx264") for container in ("matroska", "mp4", "mov", "mpegts", "flv")),
        *((container, "libx265") for container in ("matroska", "mp4", "mpegts")),
    ],
)
def test_a_picture_that_is_not_decoded_tells_when_it_begins(container: str, picture: str) -> None:
    data = recording(container, [(4.0, 2.0)], picture_as=picture)
    found = tones(decoded(open_audio(io.BytesIO(data), uri=f"talk.{container}")))
    assert found == pytest.approx([4.0, 6.0], abs=NEAR_S)


@pytest.mark.parametrize("shift_s", [3600.0, WRAP_S - 2.0], ids=["an hour", "a wrapping clock"])
def test_a_recording_counts_from_the_start_of_its_container(shift_s: float) -> None:
    data = recording("mpegts", [(0.0, 3.0), (5.0, 1.0)], shift_s=shift_s)
    found = tones(decoded(open_audio(io.BytesIO(data), uri="live.ts")))
    assert found == pytest.approx([0.0, 3.0, 5.0, 6.0], abs=NEAR_S)
    assert found == pytest.approx(shown(data), abs=0.01)


def test_sound_that_was_sent_twice_is_there_once() -> None:
    data = recording("matroska", [(0.0, 2.0), (1.6, 2.0)])
    found = tones(decoded(open_audio(io.BytesIO(data), uri="twice.mkv")))
    assert found == pytest.approx([0.0, 3.6], abs=0.12)


@pytest.mark.parametrize("sound", [("libmp3lame", "fltp"), ("pcm_s16le", "s16"), ("aac", "fltp")])
def test_gaps_of_live_recordings_are_filled_whose_length_is_a_guess(sound: tuple[str, str]) -> None:
    data = recording("matroska", [(0.0, 2.0), (9.0, 1.0)], sound=sound, live="1")
    decoder = open_audio(io.BytesIO(data), uri="live.mkv")
    assert tones(decoded(decoder)) == pytest.approx([0.0, 2.0, 9.0, 10.0], abs=NEAR_S)
    assert (decoder.time_corrections, decoder.clock_restarts) == (1, 0)


@pytest.mark.long
def test_gaps_behind_the_end_are_an_hour_in_all() -> None:
    spans = [(0.0, 1.0), *((1700.0 * number, 1.0) for number in range(1, 5))]
    data = recording("matroska", spans, picture=False, sound=("pcm_s16le", "s16"), live="1")
    decoder = open_audio(io.BytesIO(data), uri="damaged.mkv")
    found = tones(decoded(decoder))
    assert found[:-1:2] == pytest.approx([0.0, 1700.0, 3400.0], abs=NEAR_S)
    assert found[-1] == pytest.approx(3403.0, abs=0.1)


@pytest.mark.parametrize("shift_s", [0.0, 30.0])
def test_fragments_begin_where_the_first_one_does(shift_s: float) -> None:
    data = recording("mp4", [(0.0, 2.0), (4.0, 1.0)], shift_s=shift_s,
                     movflags="frag_keyframe+empty_moov+default_base_moof")  # fmt: skip
    found = tones(decoded(open_audio(io.BytesIO(data), uri="live.mp4")))
    assert found == pytest.approx([0.0, 2.0, 4.0, 5.0], abs=NEAR_S)
    assert found == pytest.approx(shown(data), abs=0.01)


def test_a_short_first_link_of_a_chain_is_whole() -> None:
    links = recording("ogg", [(0.0, 0.6)]) + recording("ogg", [(0.0, 1.0), (3.0, 1.0)])
    decoder = open_audio(io.BytesIO(links), uri="radio.ogg")
    assert tones(decoded(decoder)) == pytest.approx([0.0, 1.6, 3.6, 4.6], abs=NEAR_S)
    assert (decoder.time_corrections, decoder.clock_restarts) == (2, 1)


def test_a_jump_of_hours_is_not_believed() -> None:
    data = recording("matroska", [(0.0, 2.0), (4 * 3600.0, 1.0)], picture=False)
    decoder = open_audio(io.BytesIO(data), uri="damaged.mkv")
    assert tones(decoded(decoder)) == pytest.approx([0.0, 3.0], abs=NEAR_S)
    assert decoder.time_corrections == 1


@pytest.mark.parametrize("container", TIMED)
def test_a_jump_to_a_moment_lands_on_the_same_clock(container: str) -> None:
    data = recording(container, [(2.0, 3.0), (65.0, 2.0), (80.0, 2.0)])
    for moment_s in (3.0, 66.0, 79.0, 81.0):
        decoder = open_audio(io.BytesIO(data), uri="talk.video")
        start_s = decoder.seek(moment_s)
        assert start_s is not None
        assert start_s <= moment_s
        found = start_s + np.array(tones(decoded(decoder)))
        later = [edge_s for edge_s in (80.0, 82.0) if edge_s > moment_s]
        assert found[-len(later) :] == pytest.approx(later, abs=NEAR_S)


def test_what_has_no_times_of_its_own_is_counted_in_samples() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.full((1, SAMPLE_RATE_HZ), 5000, np.int16), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    decoder = open_audio(io.BytesIO(file.getvalue()), uri="a.wav")
    assert len(decoded(decoder)) == SAMPLE_RATE_HZ
    assert decoder.time_corrections == 0
