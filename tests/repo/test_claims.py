"""What pages claim is what was measured, and what the program prints, writes and can install."""

import json
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.tables import drawn, environment
from corpus_asr.cli import main as cli
from corpus_asr.errors import install_words
from corpus_asr.formats.options import JSON_LINES, ExportFormat

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURED = REPOSITORY / "docs" / "benchmarks"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# What comparison.md calls them.
FORMATS = {
    "srt": "SRT", "vtt": "VTT", "lrc": "LRC", "txt": "text", "md": "Markdown",
    "tsv": "TSV", "csv": "CSV", "json": "JSON",
    "whisperx": "WhisperX's JSON", "nemo": "NeMo's manifest", "rttm": "RTTM", "ctm": "CTM",
    "eaf": "EAF", "jsonl": "JSON Lines",
}  # fmt: skip
STRATEGY_NOW = "chunked"  # of `auto`, with speech detection
# Of `plan --check`, in its order (tests/runtime/test_estimate.py).
CHECKED = ["output", "recording", "machines", "model", "speed", "memory", "ready"]


def tables(page: Path) -> Iterator[list[list[str]]]:
    """Yield the tables of a page as rows of cells, heads first."""
    for table in re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        yield [rows[0], *rows[2:]]


def test_every_measurement_is_linked_from_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = [path.name for path in MEASURED.glob("*.json")]
    assert names
    assert [name for name in names if f"{name})" not in text] == []


def test_nothing_is_called_unmeasured_that_was_measured() -> None:
    names = " ".join(path.name for path in MEASURED.glob("*.json"))
    cards = [card for card in ("H100", "H200", "A100", "L4") if f"-{card.lower()}-" in names]
    assert cards == ["H200"], "the pages of other cards are to be filled"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^#+ .*\n+Unmeasured", text, re.MULTILINE), page.name
        for head, *rows in tables(page):
            for place in (place for place, cell in enumerate(head) if cell in cards):
                assert [row for row in rows if row[place] == "unmeasured"] == [], page.name
    for path in (REPOSITORY / "corpus_asr" / "config").glob("*.py"):
        assert "unmeasured" not in path.read_text(encoding="utf-8"), path.name


def num_words(page: Path) -> int:
    """Count the words of a page, without generated tables and without what draws tables."""
    text = page.read_text(encoding="utf-8")
    written = re.sub(r"<!-- measured: .*?<!-- end -->", "", text, flags=re.DOTALL)
    return len(re.findall(r"[^\s|:-]\S*", written))


def test_guides_have_at_most_forty_thousand_words() -> None:
    words = Counter({str(page.relative_to(REPOSITORY)): num_words(page) for page in PAGES})
    assert words.total() <= 40_000, words.most_common(5)


def test_a_how_to_has_at_most_six_hundred_words() -> None:
    words = {page.name: num_words(page) for page in PAGES if page.parent.name == "how-to"}
    assert {name: count for name, count in words.items() if count > 600} == {}


def test_no_row_stands_twice() -> None:
    for page in PAGES:
        for _, *rows in tables(page):
            columns = 1 if page.name == "comparison.md" else None
            # "its" is what the row above names.
            counts = Counter(tuple(row[:columns]) for row in rows if not row[0].startswith("its "))
            assert [row for row, count in counts.items() if count > 1] == [], page.name


def test_speeds_are_of_the_newest_measurement_and_of_the_defaults_of_now() -> None:
    newest = json.loads(max(MEASURED.glob("*-peers.json")).read_text())
    headline = f"{environment(newest)}\n\n{drawn(newest['sets'][0], short=True)}"
    assert headline in PAGES[0].read_text(encoding="utf-8")
    shown = (MEASURED / "README.md").read_text(encoding="utf-8")
    assert [table["name"] for table in newest["sets"] if drawn(table) not in shown] == []
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {*re.findall(r"corpus-asr \(defaults: (\w+)\)", text)} == {STRATEGY_NOW}


def test_ratios_of_the_headline_follow_from_the_measurement() -> None:
    def ratio(page: str, recordings: int, ours: str, *, of: str = "") -> str:
        measured = json.loads((MEASURED / page).read_text())
        [rows] = [
            {row["name"]: row["cpu_s"] for row in table["rows"]}
            for table in measured["sets"]
            if table["num_recordings"] == recordings
        ]
        peers = [name for name in rows if not name.startswith("corpus-asr") and of in name]
        return f"{rows[f'corpus-asr {ours}'] / min(map(rows.__getitem__, peers)):.2f}"

    text = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    best, usual, fast = "best: greedy, chunked", "(defaults: chunked)", "quality fast"
    page = "2026-11-30-peers.json"
    long, by_default = ratio(page, 8, best), ratio(page, 8, usual, of="(defaults")
    assert f"long recordings {long} times, best options against best, and {by_default} tim" in text
    clips = f"{ratio(page, 81, fast)} times with `quality: fast` and {ratio(page, 81, usual)} times"
    assert clips in text
    page = "2026-11-30-peers-avx2.json"
    long, by_default = ratio(page, 8, best), ratio(page, 8, usual, of="(defaults")
    assert f"long recordings {long} and {by_default} times" in text
    assert f"clips {ratio(page, 81, fast)} times" in text


def test_formats_are_those_of_the_program() -> None:
    formats = {*map(str, ExportFormat), JSON_LINES}
    assert set(FORMATS) == formats
    counted = {14: "fourteen"}[len(formats)]
    assert f"[{counted} formats]" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [ours] = [
        row[1]
        for head, *rows in tables(REPOSITORY / "docs" / "background" / "comparison.md")
        for row in rows
        if row[0] == "Output" and "whisper" in head[2]
    ]
    assert set(ours.split(", ")) == {"Parquet", *FORMATS.values()}
    guide = {
        row[0]
        for table in tables(REPOSITORY / "docs" / "reference" / "formats.md")
        for row in table
    }
    assert {f"`{name}`" for name in formats} <= guide


def test_what_is_to_be_installed_can_be() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    package = (REPOSITORY / "corpus_asr").rglob("*.py")
    installed: set[str] = set()
    for path in (*PAGES, *package, *(REPOSITORY / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert "corpus-asr[" not in text, f"{path}: no index has a package of that name"
        named = re.findall(r"""'\.\[([\w,]+)\]'|install_words\(["'](\w+)["']\)""", text)
        installed |= {name for names in named for name in "".join(names).split(",")}
    assert "evaluate" in installed <= {*extras}
    assert install_words("evaluate") == "pip install jiwer (extra evaluate)"
    assert install_words("none") == "pip install -e '.[none]' in a clone (extra none)"


def test_plans_in_guides_are_as_the_program_prints_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(REPOSITORY / "tests" / "data" / "spoken" / "readers.opus", tmp_path / "in")
    job = tmp_path / "job.yaml"
    call = ["init", str(job), "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.app, call).exit_code == 0
    printed = CliRunner().invoke(cli.app, ["plan", str(job), "--speed", "7"]).stdout
    lines = [line for line in printed.splitlines() if line.startswith("# ")]
    labels = [line[2:13].strip() for line in lines]
    assert printed.splitlines()[: len(lines)] == lines, "the settings follow"
    shapes = {line[2:13].strip(): shape_of(line) for line in lines}
    blocks = [
        (page.name, block)
        for page in PAGES
        for block in re.findall(
            r"^\$ corpus-asr plan \w+\.yaml(?: --check)?\n((?:[^$`].*\n)+)", page.read_text(), re.M
        )
    ]
    assert blocks
    for name, block in blocks:
        shown = [line for line in block.splitlines() if line.startswith("# ")]
        found = [line[2:13].strip() for line in shown]
        assert block.startswith(shown[0]), f"{name}: the plan comes before the settings"
        assert found[: len(labels)] == labels, name
        assert found[len(labels) :] == CHECKED[: len(found) - len(labels)] or (
            found[len(labels) :] == CHECKED
        ), name
        for line in shown[: len(labels)]:
            assert shape_of(line) == shapes[line[2:13].strip()], f"{name}: {line}"


def shape_of(line: str) -> str:
    """Return a printed line without its numbers, paths and plurals."""
    line = re.sub(r"(takes .* at RTFx [\d.,]+).*", r"\1", line)  # by whatever the speed is known
    line = re.sub(r"\S*/\S*", "PATH", line)
    line = re.sub(r"[\d.,:]*\d", "0", line)
    line = re.sub(r" (GB|MB|kB|h|min|s)\b", " UNIT", line)
    line = re.sub(r"\b(file|header|recording|thread)s\b", r"\1", line).replace("batches", "batch")
    return line
