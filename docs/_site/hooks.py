"""Build the site from the repository: pages of the reference, and files that guides link to.

MkDocs calls `on_files` and `on_page_markdown`. The reference is generated from the package, so it
cannot differ from it. Links that lead out of `docs/` lead to copies below `repository/`.
"""

import inspect
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from corpus_asr import failure_kinds, schemas
from corpus_asr.cli.main import app
from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.config.options import OPTIONS
from corpus_asr.config.run import PseudoLabelConfig, RunConfig
from corpus_asr.config.settings import described, section_of
from corpus_asr.config.storage_options import StorageOptions

REPOSITORY = Path(__file__).resolve().parents[2]
COPIES = "repository"
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#]*)(#[^)\s]*)?\)")
_HOME = {"README.md": "index.md", "docs/README.md": "guides.md"}

TABLES = {
    "segments": (schemas.SEGMENTS, "One row per segment of a transcription."),
    "labels": (schemas.LABELS, "One row per window and label of a classification."),
    "outcomes": (schemas.OUTCOMES, "One row per part of a recording."),
    "recordings": (schemas.RECORDINGS, "One row per recording of a finished run."),
    "selection": (schemas.SELECTION, "One row per segment that `corpus-asr label` examined."),
    "examples": (schemas.EXAMPLES, "One row per example of a dataset."),
}
JOBS: dict[str, tuple[type[BaseModel], str]] = {
    "run": (RunConfig, "`corpus-asr plan`, `run` and `nightly` read these sections."),
    "pseudo_label": (PseudoLabelConfig, "`corpus-asr label` also reads these sections."),
    "finetune": (FinetuneConfig, "`corpus-asr finetune` reads these sections."),
}
_SETTING = ("Key", "Value", "Description")
PYTHON = {
    "Transcriber": (
        "corpus_asr.runtime.transcriber.Transcriber",
        "corpus_asr.runtime.in_flight.Cancellation",
        "corpus_asr.runtime.in_flight.TranscriptionProgress",
        "corpus_asr.runtime.batches.Transcribe",
    ),
    "Results": (
        "corpus_asr.formats.transcript.Transcript",
        "corpus_asr.formats.transcript.SubtitleOptions",
        "corpus_asr.segments",
    ),
    "Pipeline": ("corpus_asr.models.speech_pipeline",),
    "Errors": ("corpus_asr.errors",),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the home page, and files that pages link to."""
    written = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for name, write in generated().items():
        files.append(File.generated(config, f"reference/{name}.md", content=write()))
    queue = ["README.md", *written]
    seen = set(queue)
    for path in queue:  # grows while it is read
        source = REPOSITORY / path
        place = _place(path)
        if source.is_dir():
            entries = [child.name + "/" * child.is_dir() for child in sorted(source.iterdir())]
            listing = "\n".join(f"- `{entry}`" for entry in entries if entry[0] not in "._")
            files.append(File.generated(config, place, content=f"# {path}\n\n{listing}\n"))
            continue
        if files.get_file_from_path(place) is None:
            content = source.read_text() if source.suffix == ".md" else source.read_bytes()
            files.append(File.generated(config, place, content=content))
        if source.suffix == ".md":
            targets = [target for target, _ in _links(path)]
            queue += [each for each in dict.fromkeys(targets) if each not in seen]
            seen.update(targets)
    return files


def generated() -> dict[str, Callable[[], str]]:
    """Return what writes each generated page of the reference."""
    return {
        "settings": settings, "commands": commands, "tables": tables, "failures": failures,
        "python": python, "entry_points": entry_points,
    }  # fmt: skip


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point relative links of the repository's files at the site's pages."""
    place = page.file.src_uri
    source = _source(place)
    if source is None:
        return markdown
    parts = _FENCED.split(markdown)
    parts[::2] = [
        _LINK.sub(lambda link: _moved(link, source=source, place=place), part)
        for part in parts[::2]
    ]
    return "".join(parts)


def _links(path: str) -> Iterator[tuple[str, str]]:
    text = _FENCED.sub("", (REPOSITORY / path).read_text())
    for target, anchor in _LINK.findall(text):
        if target and "://" not in target and not target.startswith("mailto:"):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if not (REPOSITORY / found).exists():
                raise FileNotFoundError(f"{path} links to {target}: found no such file")
            yield found, anchor


def _place(path: str) -> str:
    """Return where a file of the repository lies in the site."""
    if path in _HOME:
        return _HOME[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    is_folder = (REPOSITORY / path).is_dir()
    return f"{COPIES}/{path}/index.md" if is_folder else f"{COPIES}/{path}"


def _source(place: str) -> str | None:
    """Return the file of the repository that a page shows; None for a generated one."""
    back = {site: path for path, site in _HOME.items()}
    if place.removeprefix("reference/").removesuffix(".md") in generated():
        return None
    if place.startswith(f"{COPIES}/"):
        path = place.removeprefix(f"{COPIES}/")
        return path if (REPOSITORY / path).exists() else None
    return back.get(place, f"docs/{place}")


def _moved(link: re.Match[str], *, source: str, place: str) -> str:
    target, anchor = link[1], link[2] or ""
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return f"]({posixpath.relpath(_place(found), posixpath.dirname(place) or '.')}{anchor})"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return (
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
        )

    return "\n".join([line(header), line(("---",) * len(header)), *map(line, rows)]) + "\n"


def settings() -> str:
    """Return the page of all settings, from the models that check them."""
    text = [
        "# Settings",
        "A job is one YAML file. `corpus-asr init` writes it with these texts above each key; "
        "`--set section.key=value` overrides a key.\n",
    ]
    shown: set[type[BaseModel]] = set()
    for name, (model, words) in JOBS.items():
        text += [f"## {name.replace('_', ' ').capitalize()} jobs", "", words, ""]
        rows = []
        for key, field in described(model).items():
            section = section_of(field)
            if section is None:
                rows.append(_setting(key, field))
            elif section not in shown:
                shown.add(section)
                doc = inspect.cleandoc(section.__doc__ or "")
                keys = [_setting(*item) for item in described(section).items()]
                text += [f"### {key} {{ #{name}-{key} }}", "", doc, "", _table(_SETTING, keys)]
        if rows:
            text += [f"### Top level {{ #{name}-top-level }}", "", _table(_SETTING, rows)]
    return "\n".join(text)


def _setting(key: str, field: FieldInfo) -> tuple[str, ...]:
    bounds = [
        f"{sign} {getattr(each, name):g}"
        for each in field.metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(each, name, None) is not None
    ]
    kind = _type_words(field.annotation) + (f", {', '.join(bounds)}" if bounds else "")
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is PydanticUndefined:
        words = "required"
    elif isinstance(default, tuple) and len(default) > 8:
        words = f"default `{default[0]}` and {len(default) - 1} more"
    else:
        words = f"default `{_yaml_words(default)}`"
    return f"`{key}`", f"{kind}; {words}", field.description or ""


def _type_words(annotation: Any) -> str:
    if annotation is StorageOptions:
        return "options by name"
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"typing\.|Annotated\[(\w+)[^\]]*\]+|NoneType", r"\1", text)
    if literal := re.findall(r"Literal\[([^\]]*)\]", text):
        choices = ", ".join(f"`{each.strip(chr(39))}`" for each in ", ".join(literal).split(", "))
        names = {"int": "integer", "float": "number"}
        numbers = [words for each, words in names.items() if re.search(rf"\b{each}\b", text)]
        return f"{choices}{''.join(f' or {each}' for each in numbers)}"
    if "tuple" in text:
        return "list of " + ("numbers" if "float" in text else "texts")
    if "dict" in text:
        return "keys below it" + " or null" * ("None" in text)
    words = [each for each in ("bool", "int", "float", "str") if re.search(rf"\b{each}\b", text)]
    names = {"str": "text", "bool": "true or false", "int": "integer", "float": "number"}
    words = [names[each] for each in words]
    return " or ".join(words + ["null"] * ("None" in text)) or text


def _yaml_words(value: Any) -> str:
    if isinstance(value, StorageOptions):
        return _yaml_words(value.shown())
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml_words, value))}]"
    return str(value) if value != {} else "{}"


def commands() -> str:
    """Return the page of all commands, from the command line itself."""
    group: Any = typer.main.get_command(app)
    text = [
        "# Commands",
        "`corpus-asr COMMAND --help` prints the same. See [exit codes](failures.md#exit-codes).\n",
    ]
    for name, command in group.commands.items():
        text += [f"## {name}", "", inspect.cleandoc(command.help or ""), "",
                 "```console", f"$ {example_of(command)}", "```", ""]  # fmt: skip
        rows = [_parameter(each) for each in command.params if not getattr(each, "hidden", False)]
        text += [_table(("Option", "Value", "Default", "Description"), rows), ""]
    return "\n".join(text)


def example_of(command: Any) -> str:
    """Return the example that ends the help of a command."""
    return str(command.epilog).removeprefix("Example: ")


def _parameter(parameter: Any) -> tuple[str, ...]:
    is_option = parameter.opts[0].startswith("-")
    names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
    label = names if is_option else f"`{parameter.metavar or parameter.name.upper()}`"
    kind = parameter.type_descriptor.annotation
    choices = [getattr(each, "__members__", {}) for each in (kind, *get_args(kind))]
    value = ", ".join(f"`{each.value}`" for members in choices for each in members.values())
    value = value or ("flag" if kind is bool else _type_words(kind))
    default = parameter.default
    if parameter.required:
        words = "required"
    elif default is None or callable(default) or default in (False, (), []):
        words = ""
    else:
        words = f"`{getattr(default, 'value', default)}`"
    return label, value, words, getattr(parameter, "help", "") or ""


def tables() -> str:
    """Return the page of all table columns, from the schemas that are written."""
    text = [
        "# Tables",
        "All tables are Parquet files. The meaning and unit of each column are also in the "
        "metadata of its Arrow field. [Reading the tables](../how-to/reading.md) has queries.\n",
    ]
    for name, (schema, words) in TABLES.items():
        rows = []
        for field in schema:
            metadata = {
                key.decode(): value.decode() for key, value in (field.metadata or {}).items()
            }
            rows.append((f"`{field.name}`", f"`{_arrow_words(field.type)}`",
                         metadata.get("unit", ""), metadata.get("doc", "")))  # fmt: skip
        text += [f"## {name}", "", words, "", _table(("Column", "Type", "Unit", "Meaning"), rows)]
    return "\n".join(text)


def _arrow_words(kind: pa.DataType) -> str:
    return re.sub(r"<(element|item): ", "<", str(kind))


_RETRIED = {
    failure_kinds.Origin.file: "no run, until the file changes",
    failure_kinds.Origin.environment: "each run",
    failure_kinds.Origin.settings: "`--retry-failed`",
    failure_kinds.Origin.program: "`--retry-failed`, a few nights",
}


def failures() -> str:
    """Return the page of exit codes and failure kinds."""
    reliability = (REPOSITORY / "docs" / "background" / "reliability.md").read_text()
    codes = re.search(r"## Exit codes\n\n(\|.*?)\n\n", reliability, re.DOTALL)
    if codes is None:
        raise ValueError(
            "docs/background/reliability.md: found no table below '## Exit codes', expected one"
        )
    rows = [
        (f"`{kind.name}`", kind.title, kind.advice, _RETRIED[kind.origin])
        for kind in sorted(failure_kinds._KINDS, key=lambda kind: kind.name)
    ]
    header = ("Kind", "Meaning", "What to do", "Retried by")
    return "\n".join(["# Exit codes and failures", "", "## Exit codes", "", codes[1], "",
                      "## Failure kinds", "", "Column `error_kind` of the tables `outcomes` and "
                      "`recordings` holds a kind. `--retry-all-failed` retries all kinds.",
                      "", _table(header, rows)])  # fmt: skip


def entry_points() -> str:
    """Return the page of classes and methods that are compared with those of transformers."""
    lines = (REPOSITORY / "docs" / "_site" / "entry_points.tsv").read_text().splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return "\n".join(["# Entry points of transformers", "", "The test that compares each with "
                      "transformers 5.23; none: transformers' own tests, which run on the "
                      "classes of this package.", "", _table(
                          ("Class, method or argument", "Works", "Test"),
                          ((f"`{names}`", works, f"`{test}`" if test else "")
                           for names, works, test in rows))])  # fmt: skip


def python() -> str:
    """Return the page of the Python API, which mkdocstrings fills from docstrings."""
    text = ["# Python", "", "The classes of transformers are listed in "
            "[Transformers compatibility](transformers.md).", ""]  # fmt: skip
    for title, names in PYTHON.items():
        text += [f"## {title}", "", *(f"::: {name}\n" for name in names)]
        if title == "Transcriber":
            rows = [_setting(*item) for item in OPTIONS.items()]
            text += ["### TranscriptionOptions", "", "Keywords of `Transcriber` and its methods.",
                     "", _table(_SETTING, rows)]  # fmt: skip
    return "\n".join(text)
