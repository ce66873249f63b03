"""Setting what a recording has in a real browser: by keys, on a phone, two people at once."""

from pathlib import Path

import pytest

from corpus_asr.storage.run_state.overrides import read_override
from corpus_asr.storage.stores.uri import recording_id
from tests.support.pages import Chromium, chromium_path, sent
from tests.support.runs import passage, run_of, says, spoken
from tests.view.conftest import serving

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine")

ID = recording_id("/a.wav")
SUMMARY = "document.getElementById('overrides-summary').textContent"
NOTE = "document.getElementById('overrides-note').textContent"
PROBLEM = "document.getElementById('overrides-problem').textContent"
SHOWN = "!document.getElementById('overrides').hidden"
FIELDS = (
    "[document.getElementById('num-speakers').value, document.getElementById('hotwords').value]"
)
SAVE = "document.getElementById('overrides-form').requestSubmit()"


@pytest.mark.long
def test_speakers_and_hotwords_are_set_by_keys_and_what_others_set_is_not_lost(
    tmp_path: Path,
) -> None:
    said = spoken("/a.wav", passage(0, "we begin"), passage(1, "with it"), metadata='{"show": 1}')
    store = run_of(
        tmp_path / "output", said, pipeline="transcribe_corpus", speakers={"mode": "auto"}
    )
    says(store, "/a.wav", (0.0, 2.0, "S1"), (2.0, 4.0, "S2"))
    with Chromium.start() as browser, serving(store) as server:
        page = browser.open(f"{server.url}recording?id={ID}")
        page.look(width=400, height=800, dark=True)
        page.wait_for(SHOWN)
        assert page.value(SUMMARY) == "This recording: 2 speakers found, no hotwords of its own"
        assert page.value("document.getElementById('overrides').open") is False
        page.value("document.getElementById('overrides-summary').focus()")
        page.press("Enter")
        page.wait_for("document.getElementById('overrides').open")
        page.value("document.getElementById('num-speakers').focus()")
        page.press("3")  # which outside of a field names a speaker
        page.value("document.getElementById('hotwords').focus()")
        page.type("Ada Lovelace\nBabbage")
        page.value(SAVE)
        page.wait_for(f"{NOTE} === 'Saved: counts from the next run on.'")
        words = "This recording: 3 speakers, 2 hotwords of its own (counts from the next run on)"
        assert page.value(SUMMARY) == words
        assert page.value("document.documentElement.scrollWidth") <= 400
        assert read_override(store, ID).hotwords == ("Ada Lovelace", "Babbage")
        assert page.complaints() == []
        # Somebody else is first: what is written stays, the other field shows theirs.
        theirs = {"id": ID, "num_speakers": 5, "hotwords": "Byron", "name": "Ben", "seen": 1}
        assert sent(server.url, "api/override", theirs).status == 200
        page.value("document.getElementById('num-speakers').value = '4'")
        page.value(SAVE)
        page.wait_for(f"{PROBLEM}.endsWith('Now set: 5 speakers; Byron.')")
        assert page.value(FIELDS) == ["4", "Byron"]
        page.value(SAVE)
        page.wait_for(f"{SUMMARY}.startsWith('This recording: 4 speakers, 1 hotword')")
        assert read_override(store, ID).number == 3
        page.click("#overrides-remove")
        page.wait_for(f"{SUMMARY}.startsWith('This recording: 2 speakers found, no')")
        page.close()
