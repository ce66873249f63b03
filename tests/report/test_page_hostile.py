"""A page holds what the tables hold, whatever that is, as text: no markup, no links, no secrets."""

import re
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report.details import Sample
from corpus_asr.report.page.shown import Links, cut, message, sample_text
from corpus_asr.report.page.write import write_page
from corpus_asr.storage.run_state.start import CONFIG_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.commits import commit, part, results
from tests.support.html import Element, browsed, parsed

SECRET = "hunter2secret"
ATTACKS = (
    "<script>document.title='owned'</script>",
    "</script></style></title></pre><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "javascript:alert(1)",
    "{{7*7}} ${7*7} $title %(a)s",
    "&lt;b&gt; &amp; &#60;",
    "invoice\u202egpj.exe\u2066\u2069",
    "a\x00b\x07\x1b[31m\x7f\x9b",
    "Z\u0351\u036b\u0343\u036a" * 50,
    "w" * 10_000,
    "\ufffe\uffff",
)
URIS = (
    *(f"/data/{attack.replace(chr(0), '')}" for attack in ATTACKS),
    f"https://user:{SECRET}@host/a.mp3?X-Amz-Signature={SECRET}",
    "https://host/a b\"'<>.mp3",
    "javascript:alert(1)//a.mp3",
    "data:text/html,<script>alert(1)</script>",
    "http://host/" + "x" * 10_000,
)


def hostile_output(folder: Path) -> OutputStore:
    """Write an output whose every text is an attack."""
    store = OutputStore(str(folder))
    rows: list[dict[str, Any]] = []
    for number, uri in enumerate(URIS):
        attack = ATTACKS[number % len(ATTACKS)]
        row = part(f"r{number}", 0, texts=[attack, attack], uri=uri, language=attack)
        for segment in row["segments"]:
            segment |= {"confidence": 0.1, "language": attack}
        row["segments"][1]["words"] = [
            {"word": f" {attack}", "start_s": 0.0, "end_s": 1.0, "probability": 0.1}
        ] * 300
        row["segments"][0]["words"] = [
            {"word": "\u0e33", "start_s": 0.0, "end_s": 1.0, "probability": 0.1}
        ] * 300  # signs that are one letter with whatever stands before them
        rows.append(row | {"decode_s": 1.0, "transcribe_s": 1.0, "device": attack})
        rows.append(
            part(f"f{number}", 0, texts=None, uri=f"{uri}.failed", status="failed")
            | {"error_stage": attack, "error_kind": attack, "retryable": False}
            | {"error_message": f"{attack} at https://u:{SECRET}@h/x?sig={SECRET}"}
        )
    commit(store, results(*rows), run_id=ATTACKS[0])
    config = {
        "model": {"checkpoint": ATTACKS[1]},
        "decoding": {f"key{number}": attack for number, attack in enumerate(ATTACKS)},
        "source": {"uri": f"s3://user:{SECRET}@bucket/x"},
    }
    store.write_json(CONFIG_NAME, config)
    store.write_json("_run/fingerprint.json", {"fingerprint": f"x-{ATTACKS[0]}"})
    return store


def check(page: Element, html: str) -> None:
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert not page.all("img")
    for each in page.everything():
        assert not [name for name in each.attributes if name.startswith("on")], each
        assert "style" not in each.attributes, each
        assert "src" not in each.attributes, each
    links = [each.attributes["href"] for each in page.all("a")]
    assert links
    assert [link for link in links if not re.match(r"(#|\./|https?://)", link)] == []
    assert not [link for link in links if re.search("[\\s\"'<>]", link.replace("'", ""))]
    assert SECRET not in html
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", html
    )


def test_attacks_stay_text(tmp_path: Path) -> None:
    store = hostile_output(tmp_path / "output")
    write_page(store, str(tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text("utf-8")
    page = parsed(html)
    check(page, html)
    assert ATTACKS[0] in page.text
    assert len(page.all("wbr")) > 300
    assert "invoice[U+202E]gpj.exe" in page.text
    assert "{{7*7}} ${7*7} $title" in page.text
    assert len(html.encode()) < 250_000


def test_attacks_do_nothing_in_a_browser(tmp_path: Path) -> None:
    store = hostile_output(tmp_path / "output")
    write_page(store, str(tmp_path / "page.html"))
    seen = browsed(tmp_path / "page.html")
    assert seen.complaints == []
    assert "owned" not in seen.document.all("title")[0].text
    assert not seen.document.all("img")
    assert len(seen.document.all("script")) == 1
    assert seen.widths == {1280: 1280, 400: 400}


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("https://host/a b%20c.mp3?v=1", "https://host/a%20b%20c.mp3?v=1#t=2.50"),
        ("/data/in/x:y#z?.wav", "./../in/x:y%23z%3F.wav#t=2.50"),
        ("/data/page/a.wav", "./a.wav#t=2.50"),
        ("s3://bucket/a.wav", None),
        ("javascript://host/%0Aalert(1)", None),
    ],
)
def test_links_lead_to_http_and_to_files_beside_the_page(uri: str, target: str | None) -> None:
    found = parsed(Links("/data/page").to(uri, start_s=2.5)).all("a")
    assert [each.attributes["href"] for each in found] == ([] if target is None else [target])


def test_pages_elsewhere_do_not_link_to_files() -> None:
    assert "href" not in Links(None).to("/data/a.wav")


def test_a_sample_of_many_words_ends() -> None:
    words = ((" word", 0.1), *((f" w{number:03}", 0.9) for number in range(900)))
    one = Sample(
        uri="/a", start_s=0.0, end_s=1.0, text="", language=None, confidence=0.5, words=words
    )
    text = parsed(sample_text(one)).text
    assert text.startswith("word w000 w001")
    assert text.endswith("w147 w148 … (751 more words)")


def test_texts_are_cut_in_the_middle_and_lose_their_secrets() -> None:
    assert cut("a" * 10, 10) == "a" * 10
    assert cut("a" * 200 + "b" * 200, 30) == "a" * 20 + " … " + "b" * 10
    assert SECRET not in message(f"reading s3://u:{SECRET}@b/k and http://h/x?token={SECRET}")
    assert message("decoding /a.wav: not audio", of="/a.wav") == "not audio"
    assert message("the store said no", of="/a.wav") == "the store said no"
