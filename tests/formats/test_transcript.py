"""A transcript becomes the files that `corpus-asr export` writes, and rows for pandas."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from corpus_asr.errors import ConfigError
from corpus_asr.formats.options import ExportFormat
from corpus_asr.formats.subtitles import SUBTITLES
from corpus_asr.formats.transcript import Transcript
from corpus_asr.segments import Segment
from tests.support.tables import segment

SAID = (
    segment(" One two.", 0.5004, 1.5, words=True),
    segment(" Three.", 2.25, 3.3200000000000003, words=True),
)


def transcript(*segments: Segment, **values: Any) -> Transcript:
    usual: dict[str, Any] = {
        "segments": segments, "language": "en", "duration_s": 4.0, "uri": "/talks/a.b.mp3",
        "model": "openai/whisper-small",
    }  # fmt: skip
    return Transcript(**usual | values)


def test_the_dictionary_is_whispers_with_times_in_milliseconds_and_says_what_wrote_it() -> None:
    found = transcript(*SAID).to_dict()
    assert json.loads(transcript(*SAID).to_json()) == found
    first, second = found["segments"]
    assert (first["start"], second["start"], second["end"]) == (0.5, 2.25, 3.32)
    assert [word["word"] for word in first["words"]] == [" One", " two."]
    said = {name: value for name, value in found.items() if name != "segments"}
    assert said == {
        "text": " One two. Three.", "language": "en", "duration": 4.0, "uri": "/talks/a.b.mp3",
        "model": "openai/whisper-small", "version": f"corpus-asr {version('corpus-asr')}",
    }  # fmt: skip


def test_a_transcript_shows_its_texts_and_no_tokens() -> None:
    shown = repr(transcript(*SAID))
    assert shown.endswith("segments=2, text='One two. Three.')")
    assert "\n" not in shown


def test_every_format_has_its_text() -> None:
    own = transcript(*SAID)
    assert own.to_txt() == "One two.\nThree.\n"
    assert own.to_tsv() == "start\tend\ttext\n500\t1500\tOne two.\n2250\t3320\tThree.\n"
    assert own.to_lrc().startswith("[00:00.50]One two.")
    assert own.to_srt(max_line_width=4).splitlines()[2:4] == ["One", "two."]
    assert "<u>One</u>" in own.to_vtt(words="highlight")
    assert transcript().to_srt() == transcript().to_txt() == ""
    for name in (each for each in ExportFormat if each in ("txt", "tsv", "json", *SUBTITLES)):
        assert getattr(own, f"to_{name}")()


def test_channels_are_speakers_and_their_cues_may_overlap() -> None:
    left, right = (transcript(one, channel=at) for at, one in enumerate(SAID))
    both = transcript(*SAID, channels=(left, right))
    assert both.by_channel() == {0: (SAID[0],), 1: (SAID[1],)}
    assert both.to_srt(min_duration_s=3.0).count("-->") == 2
    (text,) = both._contents([ExportFormat.whisperx], {})
    assert [one["speaker"] for one in json.loads(text)["segments"]] == ["CHANNEL_00", "CHANNEL_01"]


def test_files_are_named_after_the_recording_or_as_told(tmp_path: Path) -> None:
    own = transcript(*SAID)
    saved = own.save(tmp_path / "new" / "folder", "srt", "whisperx", "srt", max_line_width=5)
    assert saved == [f"{tmp_path}/new/folder/a.b.srt", f"{tmp_path}/new/folder/a.b.whisperx.json"]
    assert Path(saved[0]).read_text() == own.to_srt(max_line_width=5)
    x = own._contents([ExportFormat.whisperx], {})[0].decode()
    for name, text in (("x.vtt", own.to_vtt()), ("x.json", own.to_json()), ("x.whisperx.json", x)):
        assert own.save(tmp_path / name) == [str(tmp_path / name)]
        assert (tmp_path / name).read_text() == text
    assert own.save(str(tmp_path / "x.nemo.jsonl")) == [str(tmp_path / "x.nemo.jsonl")]
    assert '"audio_filepath"' in (tmp_path / "x.nemo.jsonl").read_text()
    for uri, name in (
        ("https://host/a.mp3?sig=b/c", "a"), ("input-0", "input-0"), (None, "transcript"),
        ("s3://bucket/folder/", "folder"), (".mp3", ".mp3"),
    ):  # fmt: skip
        (path,) = transcript(*SAID, uri=uri).save("memory://transcripts", "txt")
        assert path == f"memory://transcripts/{name}.txt"


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    own = transcript(*SAID)
    wrong: list[tuple[Any, tuple[Any, ...], Any, str]] = [
        ("a.odt", (), {}, r"found no known suffix, expected one of \.srt, .*save\("),
        ("https://host/a", ("srt",), {}, "an http URL, expected a writable folder"),
        ("a", ("lrc",), {"words": "highlight"}, "found --words highlight"),
        ("a", ("srt",), {"preset": "none", "max_line_count": 2}, "count without max_line_width"),
        ("a", ("srt",), {"max_line_width": "42"}, "found '42', expected a whole number of at"),
        ("a", ("srt",), {"max_duraton": 3}, "option max_duraton, .*did you mean max_duration_s"),
        ("a", ("srt",), {"max_words_per_line": 3}, "expected each once of preset, max_line_width"),
        ("a", ("srt",), {"preset": "itv"}, "found preset 'itv', expected none, netflix, netflix-"),
        ("a", ("srt",), {"preset": "netlix"}, "did you mean netflix"),
        ("a", ("srt",), {"words": "hilite"}, "found words 'hilite', expected plain, highlight"),
        ("a", ("odt",), {}, "found the format 'odt', expected srt, vtt, lrc"),
    ]
    for place, formats, options, words in wrong:
        target = place if "://" in place else tmp_path / place
        with pytest.raises(ConfigError, match=words):
            own.save(target, *formats, **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"found the times nan to .* of 'One', expe"):
        transcript(replace(SAID[0], text=" One", start_s=float("nan"), end_s=1.0)).to_srt()


def test_options_have_the_names_of_the_command_line_too() -> None:
    own = transcript(*SAID)
    options: dict[str, Any] = {"subtitle_preset": "Netflix", "max_duration": 1.0, "min_gap": 0.1}
    expected = own.to_vtt(preset="netflix", max_duration_s=1.0, min_gap_s=0.1)
    assert own.to_vtt(**options) == expected
    options = {"highlight_words": True}
    assert own.to_vtt(**options) == own.to_vtt(words="highlight")


def test_a_transcript_yields_its_segments_and_is_true_also_of_silence() -> None:
    said = Transcript(segments=(segment(" a", 0.0, 1.0), segment(" b", 1.0, 2.0)), language="en",
                      duration_s=2.0)  # fmt: skip
    assert [each.text for each in said] == [" a", " b"]
    assert len(said) == 2
    assert pd.DataFrame([*said])["text"].tolist() == [" a", " b"]  # as the guide makes it
    silent = Transcript(segments=(), language=None, duration_s=2.0)
    assert silent
    assert list(silent) == []
