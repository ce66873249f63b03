"""Write the measured tables into the documents.

    python -m benchmarks.tables OUT/results.json

Between `<!-- measured: NAME -->` and `<!-- end -->` the text of README.md and
docs/benchmarks/README.md is replaced, statements on who is faster included; nothing else is. The
results are copied to docs/benchmarks, which links to them.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
_OURS = "corpus-asr"
Table = dict[str, Any]


def main(arguments: Sequence[str] | None = None, *, repository: Path = _REPOSITORY) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    results = json.loads(parser.parse_args(arguments).results.read_text())
    folder = repository / "docs" / "benchmarks"
    copy = folder / f"{results['date']}-peers.json"
    copy.write_text(f"{json.dumps(results, indent=1)}\n")
    link = f"[All figures]({copy.name})."
    tables = [f"{drawn(each)}" for each in results["sets"]]
    fill(folder / "README.md", "peers", "\n\n".join([f"{environment(results)} {link}", *tables]))
    headline = f"{environment(results)}\n\n{drawn(results['sets'][0], short=True)}"
    fill(repository / "README.md", "headline", headline)


def fill(page: Path, name: str, content: str) -> None:
    """Replace what stands between the marks of this name."""
    marks = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = marks.subn(lambda found: f"{found[1]}{content}\n{found[2]}", page.read_text())
    if count != 1:
        raise ValueError(f"filling {page}: found {count} places named {name!r}, expected 1")
    page.write_text(text)


def environment(results: Table) -> str:
    """Name machine, date and versions."""
    machine = results["hardware"]
    flags = ", ".join(machine["cpu_flags"]) or "neither AVX2 nor AVX-512"
    named = ("corpus-asr", "faster-whisper", "openvino-genai", "pywhispercpp", "transformers")
    versions = [
        f"{name} {results['versions'][name]}" for name in named if name in results["versions"]
    ]
    return (
        f"{results['date']}, {machine['cores']} cores of {machine['cpu']} ({flags}), no GPU; "
        f"{', '.join(versions)}."
    )


def drawn(table: Table, *, short: bool = False) -> str:
    """Draw one table, least CPU time first, with a sentence on who is first."""
    done = sorted((row for row in table["rows"] if row["runs"]), key=lambda row: row["cpu_s"])
    lines = [] if short else [f"### {table['name']}", ""]
    rounds = "one round" if table["rounds"] == 1 else f"medians of {table['rounds']} rounds"
    titles = ("", "CPU s", "audio s per CPU s", "wall s", "RTFx", "WER")
    lines += [
        f"{table['model']}, {table['threads']} thread{'s' * (table['threads'] > 1)}, "
        f"{table['num_recordings']} recordings, {table['audio_s'] / 60:.0f} min, {rounds}:",
        "",
        *markdown(titles, (_cells(row, table["audio_s"]) for row in done)),
        "",
        verdict(done),
    ]
    if not short:
        lines += [
            f"{row['name']}: not measured ({row['failed']})."
            for row in table["rows"]
            if row["failed"] is not None
        ]
    return "\n".join(lines)


def _cells(row: Table, audio_s: float) -> list[str]:
    rate = row["word_error_rate"]
    figures = [each for s in (row["cpu_s"], row["wall_s"]) for each in (s, audio_s / s)]
    wer = "" if rate is None else f"{100 * rate:.2f} %"
    return [row["name"], *(f"{figure:.1f}" for figure in figures), wer]


def markdown(
    titles: Sequence[str], rows: Iterable[Sequence[object]], *, left: Sequence[int] = (0,)
) -> list[str]:
    """Return the lines of a table; columns hold numbers, but for those to be aligned left."""
    rules = ["---" if at in left else "--:" for at in range(len(titles))]
    first, *others = (
        "".join(f"| {cell} " if str(cell) else "| " for cell in cells) + "|"
        for cells in (titles, *rows)
    )
    return [first, f"|{'|'.join(rules)}|", *others]


def verdict(rows: Sequence[Table]) -> str:
    """Say how our row of least CPU time stands to that of the peers, and who errs least."""
    ours = next((row for row in rows if row["name"].startswith(_OURS)), None)
    peer = next((row for row in rows if not row["name"].startswith(_OURS)), None)
    rated = [row for row in rows if row["word_error_rate"] is not None]
    said = []
    if ours and peer:
        ratio = ours["cpu_s"] / peer["cpu_s"]
        said.append(
            f"`{ours['name']}` takes {ratio:.2f} times the CPU time of `{peer['name']}`, the peer "
            "that takes least."
        )
    if rated:
        best = min(rated, key=lambda row: row["word_error_rate"])
        said.append(f"`{best['name']}` has the lowest error rate.")
    return " ".join(said)


if __name__ == "__main__":
    main()
