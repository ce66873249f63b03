"""Hotwords in all the forms that people write, and what is none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.hotwords import Hotword, hotwords_from
from corpus_asr.config.load import decoding_from
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.storage.manifest import hotwords_of
from tests.support.tables import run_config

TWO = (Hotword("Ray Data", 2.0), Hotword("Kubernetes"))


@pytest.mark.parametrize(
    "value",
    [
        "Ray Data\t2, Kubernetes,",
        "Ray  Data\t2.0\n\n Kubernetes \n",
        ["Kubernetes", {"phrase": "Ray Data", "weight": 2}],
        ({"phrase": "Ray Data", "weight": "2"}, {"phrase": "Kubernetes"}),
        {"Ray Data": 2, "Kubernetes": 1},
        list(TWO),
    ],
)
def test_every_form_says_the_same(value: Any) -> None:
    assert set(hotwords_from(value)) == set(TWO)
    settings = decoding_from({"hotwords": value})
    assert set(settings.hotwords or ()) == set(TWO)


@pytest.mark.parametrize("nothing", [None, "", " ,\n,", [], {}])
def test_no_phrases_are_none(nothing: Any) -> None:
    assert hotwords_from(nothing) == ()
    assert decoding_from({"hotwords": nothing}).hotwords is None


def test_a_file_has_a_phrase_per_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("﻿Ray Data\t2\r\nKubernetes\n\nSmith, Jones and Co\n")
    assert hotwords_from(f"@{path}", files=True) == (*TWO, Hotword("Smith, Jones and Co"))
    assert hotwords_from([f"@{path.name}"]) == (Hotword(f"@{path.name}"),)
    decoding = {"hotwords": f"@{path}"}
    assert run_config(str(tmp_path), "out", decoding=decoding).decoding.hotwords == (
        *TWO,
        Hotword("Smith, Jones and Co"),
    )
    with pytest.raises(ValueError, match=r"found @none.txt, which cannot be read"):
        run_config(str(tmp_path), "out", decoding={"hotwords": "@none.txt"})
    # What a service hands on of a request names no file.
    assert decoding_from(decoding).hotwords == (Hotword(f"@{path}"),)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "quote it"),
        ([5], "found the phrase 5"),
        (["Ray", " "], "found the phrase ' '"),
        ([{"weight": 2}], "found the phrase None"),
        ([{"phrase": "Ray", "boost": 2}], "found boost in"),
        ({"": 1}, "found the phrase ''"),
        ({"Ray": 0}, "the weight 0 of 'Ray', expected a number above 0, at most 10"),
        ({"Ray": -1.5}, "the weight -1.5"),
        ({"Ray": math.nan}, "the weight nan"),
        ({"Ray": math.inf}, "the weight inf"),
        ({"Ray": True}, "the weight True"),
        ({"Ray": [1]}, r"the weight \[1\]"),
        ("Ray\tmuch", "the weight 'much'"),
        ("a" * 201, "a phrase of 201 characters"),
    ],
)
def test_what_is_no_phrase_or_no_weight_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"hotwords: .*{words}"):
        decoding_from({"hotwords": value})


def test_a_recording_has_those_of_its_column() -> None:
    def of(columns: dict[str, Any]) -> tuple[Hotword, ...]:
        return hotwords_of("s3://a/b.mp3", json.dumps(columns))

    assert hotwords_of("s3://a/b.mp3", None) == of({"title": "hotwords"}) == ()
    assert of({"hotwords": None}) == of({"hotwords": ""}) == ()
    assert of({"hotwords": "Ray Data\t2, Kubernetes"}) == TWO
    assert of({"hotwords": "@/etc/passwd"}) == (Hotword("@/etc/passwd"),)
    with pytest.raises(
        ItemError, match=r"column hotwords of s3://a/b.mp3: found the phrase 7"
    ) as e:
        of({"hotwords": [7]})
    assert e.value.kind == "bad_hotwords"
