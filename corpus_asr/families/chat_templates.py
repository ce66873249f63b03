"""Chat templates of tokenizers: conversations in, texts or ids out, as Jinja has them.

No recognizer of speech has one; tools that are written for transformers may set and save one.
"""

import functools
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import optional_object, write_json_object
from corpus_asr.families.tensors import BatchEncoding

TEMPLATE_NAME = "chat_template.jinja"
OTHERS_FOLDER = "additional_chat_templates"
_KEY = "chat_template"
_DEFAULT = "default"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\- ]*")
# Around what an assistant says, and behind the end of what is continued; in no text by chance.
_BEGIN, _END, _GO_ON = (uuid.uuid4().hex for _ in range(3))

Templates = str | dict[str, str]
Message = Mapping[str, Any]


class ChatTemplates:
    """The part of a tokenizer that turns conversations into prompts."""

    chat_template: Templates | None = None
    """A template of Jinja, or several by name."""

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a conversation, or several, by a template, as text or as ids.

        Options are those of transformers; `kwargs` are names in the template. With
        `return_assistant_tokens_mask`, `assistant_masks` are 1 for tokens within
        `{% generation %}`.

        Raises:
            ValueError: there is no template, no message, or no end of what is to be continued.
        """
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if batched else [conversation]
        if not all(conversations):
            raise ValueError(
                "applying a chat template: found a conversation without messages, expected one at "
                "least; leave it out"
            )
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "applying a chat template: found add_generation_prompt and continue_final_message, "
                "expected one of them: an answer is begun or continued; leave one out"
            )
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError(
                "applying a chat template: found return_assistant_tokens_mask, expected tokenize "
                "and return_dict with it; set both"
            )
        template = _compiled(self.get_chat_template(chat_template, tools))
        names = {"tools": tools, "documents": documents, **self._token_names(), **kwargs}
        names["add_generation_prompt"] = add_generation_prompt
        texts, spans = [], []
        for messages in conversations:
            text = _rendered(template, messages, continue_final_message, names)
            spans.append(_spans(text))
            texts.append(text.replace(_BEGIN, "").replace(_END, ""))
        if not tokenize:
            return texts if batched else texts[0]
        options = {"padding": padding, "truncation": truncation, "max_length": max_length}
        encode: Any = self
        found: BatchEncoding = encode(
            texts if batched else texts[0],
            add_special_tokens=False,
            return_tensors=return_tensors,
            **options | dict(tokenizer_kwargs or {}),
        )
        if not return_dict:
            return found["input_ids"]
        if return_assistant_tokens_mask:
            is_rows = batched or return_tensors is not None
            rows = found["input_ids"] if is_rows else [found["input_ids"]]
            lengths = [len(row) for row in rows]
            masks: Any = [
                _mask(found, number, length, own)
                for number, (length, own) in enumerate(zip(lengths, spans, strict=True))
            ]
            found["assistant_masks"] = masks if is_rows else masks[0]
            found.convert_to_tensors(return_tensors)
        return found

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """Return the template that a call takes: given, by its name, or the tokenizer's own."""
        own = self.chat_template
        if isinstance(own, Mapping):
            if chat_template is not None:
                return own.get(chat_template, chat_template)
            name = "tool_use" if tools is not None and "tool_use" in own else _DEFAULT
            if name in own:
                return own[name]
            raise ValueError(
                f"applying a chat template: found {', '.join(sorted(own))}, expected one called "
                f"{_DEFAULT}; name one with chat_template"
            )
        if (chosen := chat_template or own) is None:
            raise ValueError(
                "applying a chat template: found none in this tokenizer, expected one, since "
                "recognizers of speech have none of their own; give chat_template"
            )
        return chosen

    def _token_names(self) -> dict[str, str]:
        return dict(getattr(self, "special_tokens_map", {}))


def read_templates(folder: Path) -> Templates | None:
    """Read the chat templates of a folder: files win over tokenizer_config.json."""
    main, others = folder / TEMPLATE_NAME, folder / OTHERS_FOLDER
    if main.is_file() or others.is_dir():
        found = {path.stem: _text(path) for path in sorted(others.glob("*.jinja"))}
        if not main.is_file():
            return found or None
        return {_DEFAULT: _text(main), **found} if found else _text(main)
    saved = optional_object(folder / "tokenizer_config.json").get(_KEY)
    if isinstance(saved, list):
        return {each["name"]: each["template"] for each in saved}
    return saved if isinstance(saved, str) else None


def check_names(templates: Templates | None) -> None:
    """Refuse names that are no plain names of files.

    Raises:
        ValueError: a name has a slash, begins with a dot or is empty.
    """
    for name in templates if isinstance(templates, Mapping) else ():
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(
                f"saving chat templates: found the name {name!r}, expected letters, digits, "
                "blanks, dots and dashes, since it becomes that of a file; call it otherwise"
            )


def write_templates(
    folder: Path, templates: Templates | None, *, as_files: bool
) -> tuple[str, ...]:
    """Write chat templates as files of Jinja, or into tokenizer_config.json; returns the paths."""
    if templates is None:
        return ()
    if not as_files:
        path = folder / "tokenizer_config.json"
        saved: Any = templates
        if isinstance(templates, Mapping):
            saved = [{"name": name, "template": text} for name, text in templates.items()]
        write_json_object(path, optional_object(path) | {_KEY: saved})
        return ()
    named = templates if isinstance(templates, Mapping) else {_DEFAULT: templates}
    paths = []
    for name, text in named.items():
        path = folder / TEMPLATE_NAME
        if name != _DEFAULT:
            path = folder / OTHERS_FOLDER / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    return tuple(paths)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(
            f"reading {path}: found bytes that are no UTF-8, expected a chat template; fetch the "
            "checkpoint again"
        ) from error


@functools.lru_cache
def _compiled(template: str) -> Any:
    try:
        from jinja2 import nodes
        from jinja2.exceptions import TemplateError
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError(
            "applying a chat template: found no jinja2, expected it next to corpus-asr; install it "
            "(pip install jinja2)"
        ) from error

    class Generation(Extension):
        # Marks what stands between {% generation %} and {% endgeneration %}.
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_marked")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False} | options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _rendered(
    template: Any,
    messages: Sequence[Message],
    continued: bool | str,
    names: Mapping[str, Any],
) -> str:
    # None is what is not there, as in messages of OpenAI's API.
    known = [{key: value for key, value in one.items() if value is not None} for one in messages]
    text: str = template.render(messages=known, **names)
    if not continued:
        return text
    key = "content" if continued is True else str(continued)
    last = known[-1].get(key)
    if isinstance(last, list):
        blocks = [*last[:-1], {**last[-1], "text": last[-1].get("text", "") + _GO_ON}]
        marked: Any = {**known[-1], key: blocks}
    elif isinstance(last, str):
        marked = {**known[-1], key: last + _GO_ON}
    else:
        raise ValueError(
            f"applying a chat template: found no {key} in the final message, expected the text "
            "that is continued; leave continue_final_message out"
        )
    before, found, _ = template.render(messages=[*known[:-1], marked], **names).partition(_GO_ON)
    if not found:
        raise ValueError(
            f"applying a chat template: the template leaves out the {key} of the final message, "
            "so that it cannot be continued; leave continue_final_message out"
        )
    # A template that trims what is said also trims it here.
    begun: str = before if text.startswith(before) else before.rstrip()
    return begun


def _spans(text: str) -> list[tuple[int, int]]:
    """Return where the text between marks stands, marks not counted."""
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in text.split(_BEGIN)[1:] if _BEGIN in text else ():
        before = text.index(_BEGIN, at)
        marks = len(_BEGIN) * 2 * len(spans)
        said = piece.partition(_END)[0]
        spans.append((before - marks, before - marks + len(said)))
        at = before + len(_BEGIN)
    return spans


def _mask(
    encoded: BatchEncoding, row: int, length: int, spans: Sequence[tuple[int, int]]
) -> list[int]:
    mask = [0] * length
    for start, end in spans:
        first = encoded.char_to_token(row, start)
        if first is None:
            break  # truncated before it
        last = encoded.char_to_token(row, end - 1)
        last = length - 1 if last is None else last
        mask[first : last + 1] = [1] * (last + 1 - first)
    return mask
