"""HTML from templates that escape what is put in, and pages that ask for nothing from outside.

In: templates with `$names` and any values. Out: `Html`. Text is escaped, and what would reorder or
hide it is shown by its code; only `Html` goes in as it is. Knows nothing of what pages say.

Source: https://html.spec.whatwg.org/multipage/scripting.html and https://www.w3.org/TR/CSP3/.
"""

import base64
import hashlib
import html
import json
import re
import string
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

# Controls but tab and line feed, lone surrogates, which UTF-8 cannot write, and non-characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# What turns the order of the letters that follow: embeddings, overrides, isolates.
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
_UNSAFE_IN_SCRIPT = re.compile("[<>&\u2028\u2029\ud800-\udfff]")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
$body
$scripts
</body>
</html>
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def fill(template: str, **values: Any) -> Html:
    """Put values for the `$names` of a template.

    Args:
        template: HTML; `$$` is a dollar.
        values: `Html` goes in as it is, None as nothing, lists and tuples item by item, anything
            else as escaped text.

    Raises:
        KeyError: a name of the template has no value.
    """
    return Html(
        string.Template(template).substitute({name: _html(each) for name, each in values.items()})
    )


def joined(pieces: Iterable[Any]) -> Html:
    """Return pieces one after the other, escaped where they are not HTML."""
    return Html("".join(_html(each) for each in pieces))


def escaped(text: str) -> Html:
    """Return text as HTML for elements and quoted attributes, with nothing hidden or reordered."""
    return Html(html.escape(visible(text)))


def visible(text: str) -> str:
    """Write controls as signs for them, and what reorders letters by its code."""
    return _REORDERING.sub(lambda found: f"[U+{ord(found[0]):04X}]", _UNSEEN.sub(_sign, text))


def script_data(name: str, value: Any) -> Html:
    """Return JSON that a script finds by `document.getElementById(name).textContent`.

    Raises:
        ValueError: the value has NaN or infinities, which JSON has not.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = _UNSAFE_IN_SCRIPT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return fill(
        '<script type="application/json" id="$name">$text</script>', name=name, text=Html(text)
    )


def page(
    title: str,
    body: Html,
    *,
    styles: Iterable[str] = (),
    scripts: Iterable[str] = (),
    allow: Mapping[str, str] | None = None,
) -> Html:
    """Return a whole page: one document, its styles and scripts inside.

    Its policy lets nothing in or out but these very styles and scripts: no style attributes, no
    handlers in attributes, no requests.

    Args:
        title: of the window.
        body: what is in it.
        styles: further style sheets, after the common one.
        scripts: JavaScript, run in this order once the body is there.
        allow: further directives of the policy, as `{"media-src": "'self'"}`.
    """
    style = "\n".join([shared("style.css"), *styles])
    programs = [program for program in scripts if program]
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": " ".join(map(_hash, programs)) or "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        **(allow or {}),
    }
    return fill(
        _PAGE,
        policy="; ".join(f"{name} {sources}" for name, sources in policy.items()),
        title=title,
        style=Html(style),
        body=body,
        scripts=[Html(f"<script>{program}</script>") for program in programs],
    )


@cache
def shared(name: str) -> str:
    """Return a file of this folder: a style sheet or a script."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _html(value: Any) -> Html:
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("")
    if isinstance(value, list | tuple):
        return joined(value)
    return escaped(str(value))


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code == 0x0D:
        return ""  # of a line's end
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
