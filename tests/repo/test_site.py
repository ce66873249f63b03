"""The site builds from the repository without a warning, and its reference is complete."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from corpus_asr.cli.main import app
from corpus_asr.config.settings import section_of
from docs._site import hooks

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Requests(HTMLParser):
    """Collects what a page loads from other hosts; links that a reader follows do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        loaded = names.get("href") if tag == "link" else names.get("src")
        if loaded and re.match(r"(https?:)?//", loaded):
            self.found.append(loaded)


@pytest.mark.long
def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text())
        assert requests.found == [], page


@pytest.mark.long
def test_the_reference_has_every_setting_command_column_and_failure(site: Path) -> None:
    def page(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text()

    for model, _ in hooks.JOBS.values():
        for name, field in model.model_fields.items():
            section = section_of(field)
            for key in section.model_fields if section else [name]:
                assert f"<code>{key}</code>" in page("settings"), key
    assert "<td></td>" not in page("settings")  # each has a description
    group = typer.main.get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        example = hooks.example_of(command)
        assert re.sub(r"<[^>]*>", "", page("commands")).replace("&#39;", "'").count(example), (
            example
        )
    for schema, _ in hooks.TABLES.values():
        for column in schema.names:
            assert f"<code>{column}</code>" in page("tables"), column
    assert "<code>not_audio</code>" in page("failures")
    for name in ("transcribe_many", "vad_threshold", "to_lrc", "max_line_width", "start_s"):
        assert name in page("python"), name


def test_a_dead_link_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("See [this](docs/gone.md).")
    monkeypatch.setattr(hooks, "REPOSITORY", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"README.md links to docs/gone.md"):
        list(hooks._links("README.md"))
