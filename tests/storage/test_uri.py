"""Addresses that stand for several, against the library that WebDataset and NeMo use."""

from pathlib import Path

import pytest
from braceexpand import braceexpand

from corpus_asr.errors import ConfigError
from corpus_asr.storage.stores import uri as uri_module
from corpus_asr.storage.stores.uri import expanded


def of(uri: str) -> list[str]:
    return list(expanded([uri], "source.uri"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/train-{000..009}.tar", "{0..10}", "{10..0..3}", "{a..e}", "{e..a..2}", "{a,b,}x",
        "a{0..1}/b{x,y}.tar", "{0..2..5}", "{-2..2}", "{08..12}", "{5}", "{}", "plain.wav",
        "{a..1}", "{1.5..2}",
    ],
)  # fmt: skip
def test_braces_mean_what_they_do_in_webdataset(uri: str) -> None:
    assert of(uri) == list(dict.fromkeys(braceexpand(uri, escape=False)))


def test_nested_braces() -> None:
    assert set(of("s-{a,{b,c}{0..1}}.tar")) == {f"s-{x}.tar" for x in ("a", "b0", "b1", "c0", "c1")}
    assert [of(uri) for uri in ("{x", "a}b")] == [["{x"], ["a}b"]]


def test_a_file_of_the_very_name_comes_first(tmp_path: Path) -> None:
    for name in ("{1,2}.wav", "[0..9].wav"):
        (tmp_path / name).touch()
        assert of(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://b/audio_[0..9].tar", r"found the range \[0..9\].*write \{0..9\}"),
        ("s3://b/audio_(0..9).tar", r"write \{0..9\}"),
        ("s3://b/audio__OP_0..9_CL_.tar", r"write \{0..9\}"),
        ("s3://b/{1..40}.tar", "more than a million URIs.*a glob"),
    ],
)
def test_what_is_written_as_elsewhere_is_refused_with_what_to_write(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uri_module, "_MOST_EXPANDED", 30)
    with pytest.raises(ConfigError, match=rf"reading source\.uri: .*{message}"):
        of(uri)
