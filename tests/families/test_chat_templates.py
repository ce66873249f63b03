"""Chat templates of tokenizers, beside transformers' own on the same templates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.families.speech2text.tokenizer import Speech2TextTokenizer
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

PLAIN = "{% for one in messages %}[{{ one.role }}] {{ one.content }}\n{% endfor %}"
TRIMMED = "{% for one in messages %}<{{ one.role }}>{{ one.content | trim }}</s>{% endfor %}"
GENERATED = (
    "{% for one in messages %}{{ one.role }}: "
    "{% if one.role == 'assistant' %}{% generation %}{{ one.content }}{% endgeneration %}"
    "{% else %}{{ one.content }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NAMES = (
    "{{ eos_token }} {{ tools | tojson }} {{ place }}{% if messages[0].x is defined %}x{% endif %}"
)
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "What is said?", "x": None},
    {"role": "assistant", "content": "A sentence. "},
]
TALKS: list[Any] = [TALK, [*TALK, {"role": "user", "content": "And then?"}, *TALK[1:]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whisper") / "tokenizer"
    tiny_tokenizer(made)
    return made


@pytest.fixture
def ours(folder: Path) -> WhisperTokenizer:
    return WhisperTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.WhisperTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (PLAIN, {}),
        (TRIMMED, {}),
        (TRIMMED, {"continue_final_message": True}),
        (PLAIN, {"continue_final_message": "content"}),
        (GENERATED, {"add_generation_prompt": True}),
        (NAMES, {"tools": [{"name": "é"}], "place": "here"}),
        ("{% for one in messages %}{{ one.role }}{% break %}{% endfor %}", {}),
        ("{{ strftime_now('%Y') }}", {}),
    ],
)
@pytest.mark.parametrize("talk", [TALK, TALKS], ids=["one", "several"])
def test_texts_and_ids_are_those_of_transformers(
    ours: WhisperTokenizer, theirs: Any, template: str, options: dict[str, Any], talk: Any
) -> None:
    asked = {"chat_template": template, **options}
    expected = theirs.apply_chat_template(talk, tokenize=False, **asked)
    assert ours.apply_chat_template(talk, tokenize=False, **asked) == expected
    ids = ours.apply_chat_template(talk, return_dict=False, **asked)
    assert ids == theirs.apply_chat_template(talk, return_dict=False, **asked)


def test_masks_are_one_where_the_assistant_speaks(ours: WhisperTokenizer, theirs: Any) -> None:
    for each in (ours, theirs):
        each.pad_token = each.eos_token
    asked: dict[str, Any] = {"chat_template": GENERATED, "return_assistant_tokens_mask": True,
                             "padding": True, "return_tensors": "np"}  # fmt: skip
    found, expected = (each.apply_chat_template(TALKS, **asked) for each in (ours, theirs))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert 0 < found["assistant_masks"].mean() < 1
    cut = ours.apply_chat_template(
        TALK, chat_template=GENERATED, return_assistant_tokens_mask=True, truncation=True,
        max_length=8,
    )  # fmt: skip
    assert len(cut["assistant_masks"]) == len(cut["input_ids"]) == 8


@pytest.mark.parametrize("templates", [PLAIN, {"default": PLAIN, "other": TRIMMED}])
@pytest.mark.parametrize("as_files", [True, False])
def test_templates_are_saved_and_read_as_transformers_does(
    ours: WhisperTokenizer, tmp_path: Path, templates: Any, as_files: bool
) -> None:
    ours.chat_template = templates
    ours.save_pretrained(tmp_path, save_jinja_files=as_files)
    assert (tmp_path / "chat_template.jinja").is_file() == as_files
    again = WhisperTokenizer.from_pretrained(tmp_path)
    other = transformers.WhisperTokenizer.from_pretrained(str(tmp_path))
    assert again.chat_template == other.chat_template == templates
    # A file wins over what the settings say.
    (tmp_path / "chat_template.jinja").write_text(TRIMMED)
    read = WhisperTokenizer.from_pretrained(tmp_path)
    assert read.get_chat_template() == TRIMMED
    assert read.apply_chat_template(TALK, tokenize=False).startswith("<user>What is said?</s>")


def test_speech2text_has_them_too(tmp_path: Path) -> None:
    tiny_speech2text_tokenizer(tmp_path / "made")
    tokenizer = Speech2TextTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.chat_template is None
    tokenizer.chat_template = PLAIN
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == (
        "[user] What is said?\n[assistant] A sentence. \n"
    )


def test_what_cannot_be_written_is_refused(ours: WhisperTokenizer, tmp_path: Path) -> None:
    def refused(words: str, talk: Any = TALK, **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            ours.apply_chat_template(talk, **options)

    refused("found none in this tokenizer")
    refused("without messages", [], chat_template=PLAIN)
    refused("expected one of them", chat_template=PLAIN, add_generation_prompt=True,
            continue_final_message=True)  # fmt: skip
    refused("leaves out the content", chat_template="a", continue_final_message=True)
    refused("found no thought", chat_template=PLAIN, continue_final_message="thought")
    refused("expected tokenize", chat_template=GENERATED, tokenize=False,
            return_assistant_tokens_mask=True)  # fmt: skip
    ours.chat_template = {"a": PLAIN, "b": TRIMMED}
    refused("found a, b, expected one called default")
    for name in ("../up", ".hidden", "a/b", ""):
        ours.chat_template = {"default": PLAIN, name: "text"}
        with pytest.raises(ValueError, match="becomes that of a file"):
            ours.save_pretrained(tmp_path / "save")
    assert not (tmp_path / "save").exists()


def test_templates_reach_nothing_outside_of_their_conversation(ours: WhisperTokenizer) -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        ours.apply_chat_template(
            TALK, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}", tokenize=False
        )
