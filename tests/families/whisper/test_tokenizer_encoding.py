"""Every option of calling, padding and decoding with Whisper's tokenizer, against transformers."""

import itertools

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from tests.support.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="its Whisper tokenizer gives no offsets"
)
TEXTS = ["ask not what your country", "", "a", "北風と太陽 b <|en|> c"]
ASKED = {
    "return_token_type_ids": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
    "return_length": True,
}


@pytest.mark.parametrize("text", [*TEXTS, TEXTS, TEXTS[2:3]], ids=str)
@pytest.mark.parametrize("padding", [False, True, "longest", "max_length", "do_not_pad"])
def test_lengths_are_those_of_transformers(pair, text, padding):
    for truncation, max_length, multiple, side, special in itertools.product(
        (None, True, False, "longest_first"), (None, 5, 8), (None, 4), (None, "left"), (True, False)
    ):
        cuts = truncation or (truncation is None and padding is False)
        pads = padding not in (False, "do_not_pad")
        if cuts and pads and multiple and max_length == 5:
            continue
        if max_length is None and (padding == "max_length" or truncation):
            continue  # the tokenizer's own length has a test of its own
        pair.agree(
            "__call__",
            text,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=multiple,
            padding_side=side,
            add_special_tokens=special,
            **ASKED,
        )


@given(
    text=st.text(st.sampled_from("ask not wy北ü"), max_size=30),
    limit=st.integers(5, 12),
    stride=st.integers(0, 1),
    side=st.sampled_from(["left", "right"]),
    several=st.booleans(),
)
@settings(max_examples=60)
def test_what_overflows_is_what_overflows_in_transformers(pair, text, limit, stride, side, several):
    for tokenizer in pair:
        tokenizer.truncation_side = side
    options = {"max_length": limit, "truncation": True, "stride": stride, **ASKED}
    texts = [text, "a", text] if several else text
    pair.agree("__call__", texts, return_overflowing_tokens=True, **options)
    pair.agree("__call__", texts, **options)
    for tokenizer in pair:
        tokenizer.truncation_side = "right"


@given(
    first=st.text(st.sampled_from("ask not wy"), max_size=20),
    second=st.text(st.sampled_from("ask not wy"), min_size=1, max_size=20),
    limit=st.integers(4, 14),
)
@settings(max_examples=60)
def test_pairs_are_those_of_transformers(pair, first, second, limit):
    pair.agree("__call__", first, second, **ASKED)
    pair.agree("__call__", [first, "a"], [second, "b"], padding=True)
    pair.agree("__call__", first, second, max_length=limit, truncation=True, **ASKED)
    for one in ("only_first", "only_second"):
        try:
            pair.agree("__call__", first, second, max_length=limit, truncation=one)
        except ValueError as error:
            assert "too few to cut" in str(error)  # noqa: PT017  (the same call may also succeed)
            with pytest.raises(Exception, match="too short"):
                pair.theirs(first, second, max_length=limit, truncation=one)


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
