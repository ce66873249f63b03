"""What Whisper's tokenizer makes of ids: texts, offsets and spellings, against transformers."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from tests.support.tokenizers import tiny_tokenizer

# Every option of decoding


def written(ours, *parts: str | float) -> list[int]:
    """Encode texts and, as numbers, timestamps in seconds."""
    ids = []
    for part in parts:
        if isinstance(part, str):
            ids += ours.encode(part, add_special_tokens=False)
        else:
            ids.append(ours.timestamp_begin + round(part / 0.02))
    return ids


@given(data=st.data())
@settings(max_examples=150)
def test_any_ids_have_the_offsets_of_transformers(pair, data):
    ours = pair.ours
    begin = ours.timestamp_begin
    token = st.one_of(
        st.integers(0, 255),
        st.integers(begin, begin + 30),
        st.integers(begin, begin + 1500),
        st.sampled_from([ours.sot, ours.eot, ours.start_of_prev]),
    )
    ids = data.draw(st.lists(token, max_size=20))
    for options in (
        {},
        {"skip_special_tokens": True},
        {"decode_with_timestamps": True},
        {"time_precision": 0.04},
        {"time_precision": 0.04, "decode_with_timestamps": True},
    ):
        pair.agree("decode", ids, output_offsets=True, **options)


def test_offsets_are_the_stretches_with_their_times(pair):
    ours = pair.ours
    ids = written(ours, 0.0, " ask", 1.0, 1.0, " not", 2.5, 0.5, " what", 1.5)
    found = pair.agree("decode", ids, output_offsets=True)
    assert found == {
        "text": " ask not what",
        "offsets": [
            {"text": " ask", "timestamp": (0.0, 1.0)},
            {"text": " not", "timestamp": (1.0, 2.5)},
            {"text": " what", "timestamp": (30.5, 31.5)},
        ],
    }
    # Theirs raises for several sequences, though the reference documents show them.
    assert ours.batch_decode([ids, []], output_offsets=True) == [found, {"text": "", "offsets": []}]
    assert ours.decode(np.array([ids]), output_offsets=True) == [found]


SPOKEN = "Mr. Colour won't pay two hundred dollars [sic] in 1,000 cafés"


def test_text_is_normalized_as_in_transformers(pair):
    ours = pair.ours
    ids = [*ours.prefix_tokens, *written(ours, 0.0, SPOKEN, 1.0), ours.eot]
    pair.agree("decode", ids, normalize=True, output_offsets=True)
    for options in (
        {"normalize": True},
        {"basic_normalize": True},
        {"basic_normalize": True, "remove_diacritics": True},
        {"normalize": True, "basic_normalize": True},
        {"normalize": True, "skip_special_tokens": True},
        {"normalize": True, "decode_with_timestamps": True},
    ):
        pair.agree("decode", ids, **options)
        pair.agree("batch_decode", [ids, ids[3:]], **options)


def test_normalizing_uses_the_spellings_of_the_checkpoint(pair, tmp_path):
    assert pair.agree("normalize", "Colour") == "color"
    assert pair.agree("basic_normalize", "é, x") == "é x"
    assert pair.agree("basic_normalize", "é, x", remove_diacritics=True) == "e x"
    tiny_tokenizer(tmp_path)
    own = WhisperTokenizer.from_pretrained(tmp_path)
    assert own.english_spelling_normalizer is None
    assert own.normalize("Colour") == "color"
    (tmp_path / "normalizer.json").write_text('{"colour": "hue"}')
    assert WhisperTokenizer.from_pretrained(tmp_path).normalize("Colour") == "hue"


def test_blanks_before_punctuation_go_only_where_somebody_asks(pair, folder):
    # The files of published checkpoints ask for it; transformers does not listen to them either.
    text = "it 's , do n't . ' a ' !"
    ids = pair.ours.encode(text, add_special_tokens=False)
    tight = pair.agree("clean_up_tokenization", text)
    assert pair.agree("decode", ids) == text != tight
    assert pair.ours.decode(ids, clean_up_tokenization_spaces=True) == tight
    asked = WhisperTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=True)
    assert asked.decode(ids) == tight
    assert asked.decode(ids, decode_with_timestamps=True) == tight
    assert asked.decode(ids, clean_up_tokenization_spaces=False) == text
    assert asked.batch_decode([ids]) == [tight]


def test_sequences_come_in_any_form(pair):
    ours, theirs = pair
    for ids, rows in (
        ([[5, 6], [7]], [[5, 6], [7]]),
        ([5, 6], [[5, 6]]),
        (np.array([[5, 6], [7, 8]]), [[5, 6], [7, 8]]),
        (torch.tensor([[5, 6]]), [[5, 6]]),
        (torch.tensor([5, 6]), [[5, 6]]),
        ([torch.tensor([5, 6]), torch.tensor([7])], [[5, 6], [7]]),
        ([[], [5]], [[], [5]]),
        ((np.int64(5), 6), [[5, 6]]),
        (5, [[5]]),
    ):
        assert ours.batch_decode(ids) == theirs.batch_decode(rows) == [ours.decode(r) for r in rows]
        assert ours.decode(ids) in (ours.batch_decode(ids), ours.batch_decode(ids)[0])


def test_what_calls_return_decodes_by_itself_and_labels_do_not(ours):
    assert ours.decode(ours("ask not"), skip_special_tokens=True) == "ask not"
    assert ours.decode(ours(["ask", "not"]), skip_special_tokens=True) == ["ask", "not"]
    assert ours.batch_decode([]) == []
    assert ours.decode([]) == ""
    with pytest.raises(ValueError, match=r"found -100, expected ids from 0"):
        ours.batch_decode([[5, -100]])


@given(ids=st.lists(st.integers(0, 300), max_size=12))
@settings(max_examples=100)
def test_broken_characters_become_what_was_asked_for(pair, ids):
    reader = copy.copy(pair.ours)
    reader.errors = "surrogateescape"
    data = b"".join(reader.decode([i]).encode("utf-8", "surrogateescape") for i in ids)
    for errors in ("replace", "ignore", "backslashreplace"):
        reader.errors = errors
        assert reader.decode(ids) == data.decode("utf-8", errors)


def test_broken_characters_may_be_refused(folder):
    strict = WhisperTokenizer.from_pretrained(folder, errors="strict")
    cut = strict.encode("北", add_special_tokens=False)[:1]
    with pytest.raises(ValueError, match="utf-8"):
        strict.decode(cut)
    assert strict.decode([*cut, strict.eot][1:], skip_special_tokens=True) == ""
    with pytest.raises(ValueError, match="errors='explode'"):
        WhisperTokenizer.from_pretrained(folder, errors="explode")
