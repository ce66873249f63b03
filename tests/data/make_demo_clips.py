"""Speak, encode and write the clips of tests/data/demo.

In: texts in the public domain and the espeak-ng program (`apt-get install espeak-ng`). Out: four
small files in four formats. Run again only to change the clips, which are committed.
"""

import io
import subprocess
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler

FOLDER = Path(__file__).parent / "demo"

# Abraham Lincoln, Gettysburg, 1863.
ENGLISH = (
    "Four score and seven years ago our fathers brought forth on this continent a new nation, "
    "conceived in liberty, and dedicated to the proposition that all men are created equal."
)
ENGLISH_LONG = (
    ENGLISH,
    "Now we are engaged in a great civil war, testing whether that nation, or any nation so "
    "conceived and so dedicated, can long endure. We are met on a great battlefield of that war.",
    "We have come to dedicate a portion of that field, as a final resting place for those who "
    "here gave their lives that that nation might live. It is altogether fitting and proper that "
    "we should do this.",
)
# Johann Wolfgang von Goethe, 1780.
GERMAN = (
    "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch. "
    "Die Vögelein schweigen im Walde. Warte nur, balde ruhest du auch."
)
PAUSE_S = 2.5  # long enough for a part or a window to be cut in it


def speak(text: str, voice: str, rate_hz: int) -> np.ndarray:
    """Return the spoken text as mono samples in 16 bits."""
    command = ["espeak-ng", "-v", voice, "-s", "150", "--stdout", text]
    wav = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    resampler = AudioResampler(format="s16", layout="mono", rate=rate_hz)
    with av.open(io.BytesIO(wav), "r", format="wav") as container:
        frames = [
            piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)
        ]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def silence(seconds: float, rate_hz: int) -> np.ndarray:
    return np.zeros(round(seconds * rate_hz), dtype=np.int16)


def write(path: Path, samples: np.ndarray, codec: str, rate_hz: int, bit_rate: int | None) -> None:
    """Encode mono samples into the container the file name asks for."""
    # Without the bitexact flags the encoder's version is written into the file.
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate_hz
        to_codec = AudioResampler(
            format=stream.codec_context.format,
            layout="mono",
            rate=rate_hz,
            frame_size=stream.codec_context.frame_size or None,
        )
        for piece in [*to_codec.resample(frame), *to_codec.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    write(FOLDER / "english.wav", speak(ENGLISH, "en-us", 16_000), "pcm_s16le", 16_000, None)
    write(FOLDER / "german.opus", speak(GERMAN, "de", 48_000), "libopus", 48_000, 32_000)
    spoken = [
        piece
        for text in ENGLISH_LONG
        for piece in (speak(text, "en-gb", 22_050), silence(PAUSE_S, 22_050))
    ]
    write(FOLDER / "longer.mp3", np.concatenate(spoken), "libmp3lame", 22_050, 48_000)
    write(FOLDER / "silence.flac", silence(5.0, 16_000), "flac", 16_000, None)


if __name__ == "__main__":
    main()
