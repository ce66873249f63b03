"""What pages show of texts and addresses: visible, short, without secrets, with safe links."""

from corpus_asr.report.html.formatting import cut, link, message, sample_words, visible
from corpus_asr.report.samples import Sample


def test_what_hides_or_reorders_text_is_shown():
    assert (
        visible("a\x00b\x1b[0m\x7f\x85\ud800\n\tc\r\n")
        == "a\u2400b\u241b[0m\u2421\ufffd\ufffd\n\tc\n"
    )
    assert visible("invoice\u202egpj.exe\u2069") == "invoice[U+202E]gpj.exe[U+2069]"
    hebrew = "\u05e9\u05dc\u05d5\u05dd\u200f!"
    assert visible(hebrew) == hebrew


def test_links_lead_to_http_and_to_files_beside_the_page() -> None:
    for uri, target in (
        ("https://host/a b%20c.mp3?v=1", "https://host/a%20b%20c.mp3?v=1"),
        ("/data/in/x:y#z?.wav", "./../in/x:y%23z%3F.wav"),
        ("/data/page/a.wav", "./a.wav"),
        ("s3://bucket/a.wav", None),
        ("javascript://host/%0Aalert(1)", None),
    ):
        assert link(uri, folder="/data/page")[1] == target, uri
    assert link("/data/a.wav", folder=None)[1] is None


def test_a_sample_of_many_words_ends() -> None:
    words = ((" word", 0.1), *((f" w{number:03}", 0.9) for number in range(900)))
    sample = Sample(
        recording_id="r",
        channel=None,
        uri="/a",
        start_s=0.0,
        end_s=1.0,
        text="",
        language=None,
        confidence=0.5,
        words=words,
    )
    shown, left_out = sample_words(sample)
    assert (shown[0], shown[-1], left_out) == ((" word", 0.1), (" w148", 0.9), 751)


def test_texts_are_cut_in_the_middle_and_lose_their_secrets() -> None:
    assert cut("a" * 10, 10) == "a" * 10
    assert cut("a" * 200 + "b" * 200, 30) == "a" * 20 + " … " + "b" * 10
    assert "secret" not in message("reading s3://u:secret@b/k and http://h/x?token=secret")
    assert message("decoding /a.wav: not audio", of="/a.wav") == "not audio"
    assert message("the store said no", of="/a.wav") == "the store said no"
