"""Sentences that models write where nobody speaks are known whole, in whatever spelling."""

import pytest

from corpus_asr.transcription.fallback import (
    HALLUCINATION_LANGUAGES,
    HALLUCINATION_PHRASES,
    is_known_hallucination,
    known_hallucinations,
)

EVERY = [
    (code, phrase) for code in HALLUCINATION_LANGUAGES for phrase in known_hallucinations(code)
]


def test_every_file_is_a_language_and_no_other_has_a_list() -> None:
    names = sorted(path.name for path in HALLUCINATION_PHRASES.iterdir())
    assert names == [f"{code}.txt" for code in HALLUCINATION_LANGUAGES]
    with pytest.raises(FileNotFoundError):
        known_hallucinations("xx")


def test_every_phrase_is_known_listed_once_and_too_long_to_be_a_common_word() -> None:
    assert len(EVERY) == len(set(EVERY))
    for code, phrase in EVERY:
        assert is_known_hallucination(phrase), phrase
        assert len(phrase) >= (4 if code in ("ja", "zh", "ko") else 8), phrase


def test_case_punctuation_spaces_and_unicode_forms_do_not_count() -> None:
    for text in (
        " thanks for watching", "Thanks  for watching !!!", "THANKS FOR WATCHING.",
        " Untertitel im Auftrag des ZDF fu\u0308r funk 2017", "ご視聴 ありがとうございました。",
        "Sous-titres réalisés par la communauté d\u2019Amara.org",
        "请不吝点赞订阅转发打赏支持明镜与点点栏目",
    ):  # fmt: skip
        assert is_known_hallucination(text), text


def test_what_people_say_is_not_known() -> None:
    for text in (
        "", " ", "...", "Thank you.", "you", "Bye.", "Thanks for watching the children for me.",
        "He said thanks for watching", "Thanks for watching! Thanks for watching!",
    ):  # fmt: skip
        assert not is_known_hallucination(text), text
