import json
import re

import pytest

from corpus_asr.pages.html import Html, escaped, fill, joined, page, script_data, visible


def test_text_is_escaped_and_html_is_not():
    found = fill('<p title="$a">$b$c</p>', a='"><script>', b="<b>&amp;</b>", c=Html("<i>1</i>"))
    assert found == ('<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;amp;&lt;/b&gt;<i>1</i></p>')


def test_values_that_are_no_text_go_in_too():
    assert fill("$a|$b|$c", a=3, b=None, c=[Html("<br>"), "<"]) == "3||<br>&lt;"
    assert joined(["<", Html("<br>")]) == "&lt;<br>"


def test_a_value_is_no_template_and_a_name_without_a_value_is_an_error():
    assert fill("$a $$", a="$b") == "$b $"
    with pytest.raises(KeyError, match="b"):
        fill("$a $b", a=1)


def test_what_hides_or_reorders_text_is_shown():
    assert (
        visible("a\x00b\x1b[0m\x7f\x85\ud800\n\tc\r\n")
        == "a\u2400b\u241b[0m\u2421\ufffd\ufffd\n\tc\n"
    )
    assert visible("invoice\u202egpj.exe\u2069") == "invoice[U+202E]gpj.exe[U+2069]"
    assert escaped("\ud800").encode() == "\ufffd".encode()
    assert (
        visible("\u05e9\u05dc\u05d5\u05dd\u200f!") == "\u05e9\u05dc\u05d5\u05dd\u200f!"
    )  # as Hebrew is written


@pytest.mark.parametrize(
    "text",
    ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028\u2029", "\ud800", "&lt;"],
)
def test_data_for_scripts_ends_no_script_and_comes_back(text):
    found = script_data("data", {"text": text})
    inside = re.fullmatch(
        r'<script type="application/json" id="data">(.*)</script>', found, re.DOTALL
    )
    assert inside is not None
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", inside[1])
    assert json.loads(inside[1]) == {"text": text}


def test_data_that_json_cannot_say_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        script_data("data", float("nan"))


def test_a_page_allows_its_own_styles_and_scripts_only():
    found = page(
        "a <b>", Html("<p>x</p>"), styles=["p{}"], scripts=["let a"], allow={"media-src": "'self'"}
    )
    assert "<title>a &lt;b&gt;</title>" in found
    policy = re.search('Content-Security-Policy" content="([^"]*)"', found)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;; style-src &#x27;sha256-")
    assert "unsafe" not in policy[1]
    assert policy[1].endswith("; media-src &#x27;self&#x27;")
    assert "<script>let a</script>" in found
