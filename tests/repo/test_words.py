"""Text for users has the field's words: what must not appear in it, checked like spelling."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.repo.sources import PACKAGE, REPOSITORY, parsed, python_files, relative

# Everyday words that stood for terms, each with what to write instead.
WORDS = {
    r"heard": "recognized, transcribed, hypothesis",
    r"told": "reported, logged, labeled",
    r"(un)?sure": "confidence, probable",
    r"stretch(es)?": "segment, span, window",
    r"passages?": "utterance, segment",
    r"anew": "again",
    r"beside": "next to, in addition to, compared with",
    r"apart": "separately, each",
    r"reckon(s|ed|ing)?": "estimate, check",
    r"likewise": "the instruction itself",
    r"hiccups?": "transient error",
    r"learnt": "trained, learned",
    r"hours (of audio )?per hour": "RTFx",
    r"(handing|hand|handed) over": "queued, blocked by backpressure",
    r"without work": "idle",
    r"given up": "aborted, failed",
    r"goes? on|going on|gone on": "continue, resume",
    r"passing reason": "transient failure",
    r"far store": "high-latency storage",
    r"who(m|ever)": "the actor's name",
    r"\w*(recognis|normalis|summaris|neighbour|colour|behaviour)\w*": "American spelling",
}
UNWANTED = re.compile(rf"\b({'|'.join(f'(?:{word})' for word in WORDS)})\b", re.IGNORECASE)
PAGES = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "configs").rglob("*.yaml")),
    *sorted(PACKAGE.rglob("*.j2")),
    *sorted((REPOSITORY / "notebooks").glob("*.md")),
    *sorted((REPOSITORY / "notebooks").glob("*.ipynb")),
    *sorted((REPOSITORY / "notebooks").glob("*.py")),
)
CODE = re.compile(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def printed(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module that are more than one word, and descriptions of settings."""
    internal = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            internal |= {
                id(each.value)
                for each in node.body
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
            }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in internal:
            continue
        if isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def text_of(page: Path) -> str:
    """Return what a reader sees: of templates no tags, of notebooks the cells."""
    if page.suffix == ".j2":
        return CODE.sub("", page.read_text())
    if page.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"])
    return page.read_text()


def unwanted() -> Iterator[str]:
    for page in PAGES:
        text = text_of(page)
        prose = FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)
        for number, line in enumerate(prose.splitlines(), 1):
            for word in UNWANTED.findall(line):
                yield f"{relative(page)}:{number}: {word[0]}"
    for module in python_files("corpus_asr"):
        for number, text in printed(parsed(module)):
            for word in UNWANTED.findall(text):
                yield f"{relative(module)}:{number}: {word[0]}"


def descriptions() -> Iterator[tuple[str, str]]:
    from corpus_asr.config.finetune import FinetuneConfig
    from corpus_asr.config.run import PseudoLabelConfig
    from corpus_asr.config.settings import keys_of, section_of

    for model in (PseudoLabelConfig, FinetuneConfig):
        for key, field in keys_of(model):
            if section_of(field) is None:
                yield ".".join(key), field.description or ""


def test_no_text_for_users_has_an_unwanted_word() -> None:
    assert list(unwanted()) == []


def test_every_setting_is_described_by_a_full_phrase() -> None:
    for key, text in descriptions():
        assert not UNWANTED.search(text), f"{key}: {text}"
        assert re.match(r"[A-Z`]", text), f"{key}: {text}"
        assert text.endswith("."), f"{key}: {text}"


# Pronouns, participles and adverbs say nothing of what a variable holds.
VAGUE_NAMES = {
    "each", "own", "found", "one", "mine", "theirs", "other", "others", "some", "said", "left",
    "asked", "given", "known", "here", "there", "what", "now", "before", "after",
}  # fmt: skip
MAX_SHARE_OF_VAGUE_NAMES = 0.003


def test_variables_are_named_after_what_they_are() -> None:
    names = [
        (node.id, f"{relative(path)}:{node.lineno}")
        for path in python_files("corpus_asr")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    vague = [f"{place}: {name}" for name, place in names if name in VAGUE_NAMES]
    assert len(vague) <= MAX_SHARE_OF_VAGUE_NAMES * len(names), "\n".join(vague)
