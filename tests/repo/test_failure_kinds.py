"""The table of failure kinds is complete in itself, and the guide quotes it as it is."""

from pathlib import Path

from corpus_asr.failure_kinds import FAILURE_KINDS, failure_kind

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
# What the guide repeats of the table, by kind.
QUOTED = {
    "access_denied": (
        "check the credentials and that they may read and list here",
        "that they may read, list, write and delete here",
    ),
    "not_audio": ("these are no audio",),
    "not_found": ("choose another output",),
}
NAMED = ("decoder_killed", "not_audio", "unsupported_codec")


def test_titles_are_headings_and_advice_ends_a_sentence() -> None:
    for name, kind in FAILURE_KINDS.items():
        assert kind.name == name
        assert kind.title[0].isupper(), name
        for text in filter(None, (kind.advice, kind.read_advice, kind.write_advice)):
            assert text[0].islower(), name
            assert not text.endswith("."), name


def test_a_kind_of_another_version_is_advised_by_whether_a_retry_may_help() -> None:
    assert failure_kind("timeout") is FAILURE_KINDS["timeout"]
    assert failure_kind("of_tomorrow").title == "Of tomorrow"
    assert "--retry-failed" in failure_kind("of_tomorrow", retryable=True).advice
    assert "will not help" in failure_kind("of_tomorrow").advice


def test_the_guide_quotes_the_table() -> None:
    guide = GUIDE.read_text()
    for name, quotes in QUOTED.items():
        kind = FAILURE_KINDS[name]
        for quote in quotes:
            assert quote in guide, name
            assert quote in " ".join((kind.advice, kind.read_advice, kind.write_advice)), name
    for name in NAMED:
        assert name in guide
        assert name in FAILURE_KINDS
