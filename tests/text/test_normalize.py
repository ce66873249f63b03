"""Whisper's normalizers against those of transformers and openai-whisper."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper import english_normalizer as theirs
from whisper.normalizers import BasicTextNormalizer as OpenaiBasic
from whisper.normalizers import EnglishTextNormalizer as OpenaiEnglish

from corpus_asr.text.normalize import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
    american_spellings,
    numbers_in_figures,
)
from corpus_asr.transcription.fallback import (
    HALLUCINATION_LANGUAGES,
    HALLUCINATION_PHRASES,
    is_known_hallucination,
    known_hallucinations,
)

ENGLISH = EnglishTextNormalizer()
with warnings.catch_warnings():
    # openai-whisper leaves its list of spellings open.
    warnings.simplefilter("ignore", ResourceWarning)
    ENGLISH_ORACLES = (theirs.EnglishTextNormalizer(dict(american_spellings())), OpenaiEnglish())
NUMBERS_ORACLE = theirs.EnglishNumberNormalizer()

NUMBER_WORDS = sorted(NUMBERS_ORACLE.words)
BESIDE_NUMBERS = (
    "cat", "it's", "5", "10", "0", "00", "007", "2.5", "$20", "¢7", "$2", "-3", "£", "1.2.3",
    "1960", "s", "th", "3rd", "5x", "x5", "o'", "$0.50", "per", "cent", "half", "a",
)  # fmt: skip
PHRASES = ["and a half", "point five", "five and", "per cent", "million dollars", "  "]
SENTENCE_PARTS = (
    "won't", "y'all", "she's", "been", "'ve", "n't", "'d", "gone", "Mr.", "St.", "Dr", "Mrs",
    "uh", "hmm", "mm", "colour", "Colour's", "1,000", "10%", "%", "$5.50", "$", ".", ",", "...",
    "3.14", "12:30", "[laughs]", "(aside)", "<b>", "é", "ß", "Œuvre", "½", "²", "三", "[", ")",
    "twenty-one", "5mm", "It's", "'", "\uff21", "\u0661", "\u0301", " ", "\n", "\u00a0", " 's",
)  # fmt: skip


def split_manifest_texts(speech: Path) -> list[str]:
    rows = [
        json.loads(line)
        for path in sorted(speech.glob("*/manifest.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return sorted({row["text"] for row in rows if row.get("text")})


def test_every_text_of_the_data_is_normalized_as_in_both_references(speech):
    texts = split_manifest_texts(speech)
    assert len(texts) > 500
    for text in texts:
        assert [ENGLISH(text)] * 2 == [oracle(text) for oracle in ENGLISH_ORACLES]
        for remove in (False, True):
            expected = [cls(remove)(text) for cls in (theirs.BasicTextNormalizer, OpenaiBasic)]
            assert [BasicTextNormalizer(remove)(text)] * 2 == expected


@settings(max_examples=150)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(NUMBER_WORDS),
            st.sampled_from(NUMBER_WORDS),
            st.sampled_from(BESIDE_NUMBERS),
            st.sampled_from(PHRASES),
            st.from_regex(r"[$£]?[0-9]{1,4}(\.[0-9]{1,2})?", fullmatch=True),
        ),
        max_size=10,
    )
)
def test_any_numbers_are_written_as_in_transformers(words):
    text = " ".join(words)
    assert numbers_in_figures(text) == NUMBERS_ORACLE(text)


@settings(max_examples=100)
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(SENTENCE_PARTS),
            st.sampled_from(NUMBER_WORDS),
            st.sampled_from(sorted(american_spellings())),
        ),
        max_size=10,
    ),
    blank=st.sampled_from(["", " ", ", "]),
)
def test_any_english_is_normalized_as_in_both_references(parts, blank):
    text = blank.join(parts)
    assert [ENGLISH(text)] * 2 == [oracle(text) for oracle in ENGLISH_ORACLES]


@settings(max_examples=100)
@given(text=st.text(), remove=st.booleans())
def test_any_text_is_normalized_as_in_both_references(text, remove):
    assert ENGLISH(text) == ENGLISH_ORACLES[0](text) == ENGLISH_ORACLES[1](text)
    expected = theirs.BasicTextNormalizer(remove)(text)
    assert BasicTextNormalizer(remove)(text) == expected == OpenaiBasic(remove)(text)


def test_numbers_are_written_as_people_write_them():
    for spoken, written in (
        ("two hundred and twenty one", "221"),
        ("two dollars and seven cents", "$2.07"),
        ("one by one", "one by one"),
        # transformers and openai-whisper raise ValueError here.
        (f"two {'9' * 5000} cats", f"2 {'9' * 5000} cats"),
    ):
        assert numbers_in_figures(spoken) == written


def test_a_list_of_spellings_replaces_the_own_one(float_model):
    spelled = json.loads((float_model / "normalizer.json").read_text())
    assert {w: s for w, s in spelled.items() if american_spellings().get(w) != s} == {"mm": "hmm"}
    assert american_spellings().items() <= spelled.items()
    assert EnglishTextNormalizer({"cat": "dog"})("Colour cat") == "colour dog"
    assert EnglishTextNormalizer({})("colour") == "colour"


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
