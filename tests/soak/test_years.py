"""A year of nights over an archive that lives, ending with the tables of a fresh run over it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.run_tables import read_redo
from corpus_asr.storage.run_state.table_names import COMMITS_FOLDER
from tests.support.clocks import WrongClock, wrong_clock
from tests.support.living_archive import broken, plain
from tests.support.years import DAYS, TROUBLES, UPGRADES, Year, spend

pytestmark = [
    pytest.mark.long,
    # A run that is killed may be killed in the thread of its lock.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

COMPARED = {
    "outcomes": ("uri", "part", "last_part", "size_bytes", "etag", "status", "error_kind",
                 "duration_s", "segments_written"),
    "recordings": ("uri", "size_bytes", "etag", "metadata", "status", "error_kind", "parts",
                   "segments", "duration_s", "gone_since"),
    "segments": ("uri", "part", "segment", "start_s", "end_s", "language"),
}  # fmt: skip
MANIFEST_DAYS = ("add", "name_late", "unname", "change_column", "change_text", "correct", "forget",
                 "allow", "prune", "ask_again")  # fmt: skip


@pytest.fixture
def clock() -> Iterator[WrongClock]:
    with wrong_clock() as clock:
        yield clock


class ManifestYear(Year):
    """An archive that a manifest names, with a known text of each recording."""

    def _begin(self, files: int) -> None:
        self.columns: dict[Path, dict[str, Any]] = {}
        super()._begin(files)

    def _source(self) -> dict[str, Any]:
        lines = ({"uri": str(path.relative_to(self.project))} | columns
                 for path, columns in self.columns.items())  # fmt: skip
        path = self.project / "list.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {"manifest": str(path)}

    def _decoding(self) -> dict[str, Any]:
        return {"align": True, "language": "en"}

    def _write(self, path: Path) -> None:
        super()._write(path)
        self.columns[path] = {"text": "said 0", "show": 0}

    def files(self) -> dict[str, int]:
        return {uri: content for uri, content in super().files().items()
                if Path(uri) in self.columns}  # fmt: skip

    def listed(self) -> set[str]:
        return {*map(str, self.columns)}

    def _named(self) -> Path:
        paths = (Path(uri) for uri, content in self.files().items() if content not in self.away)
        return self.chance.choice(sorted(paths))

    def name_late(self) -> None:
        """Name a file in the manifest, and let what was named before arrive."""
        for path in self.columns:
            if not path.exists():
                super()._write(path)
        self.columns[self._new_path()] = {"text": "said 0", "show": 0}

    def unname(self) -> None:
        del self.columns[self._named()]

    def change_column(self) -> None:
        self.columns[self._named()]["show"] += 1

    def change_text(self) -> None:
        columns = self.columns[self._named()]
        columns["text"] = f"said {int(columns['text'].split()[1]) + 1}"
        # It is another text, which a person's correction is not of.
        self.corrected.clear()

    def _content(self, file: Any) -> int | None:
        path = Path(file["uri"])
        return path.stat().st_size if path.exists() else None

    def _said(self, file: Any, texts: list[str]) -> list[str]:
        known = json.loads(file["metadata"])["text"].split()[1]
        return [f"{each.rpartition(' ')[0]} {known} {self.take}" for each in texts]

    def check(self, *, ended: bool, whole: bool) -> None:
        super().check(ended=ended, whole=whole)
        if not ended:
            return
        for table in ("outcomes", "recordings", "segments"):
            for row in self.read(table):
                columns = self.columns.get(Path(row["uri"]))
                if columns is not None:
                    if table == "recordings":
                        assert json.loads(row["metadata"]) == columns, row["uri"]
                    text = columns["text"].split()[1]
                    assert row.get("text", f"_ _ {text} _").split()[2] == text


def end(year: Year) -> None:
    """See that the tables are those of a fresh run over what is there; name what differs."""
    year.redo = year.redo or None
    year.night()
    year.night()
    assert not [uri for uri in year.done if Path(uri).exists()], "nothing is left to do"
    store = year.store
    year.prune(days=0)
    found = {name: rows_by_uri(year, name) for name in COMPARED}
    bad = {uri for uri, content in year.files().items() if broken(content)}
    files = year.files()
    kept = {row["uri"] for row in year.read("recordings")
            if row["uri"] in bad and year.is_of_earlier(row, files[row["uri"]])}  # fmt: skip
    waiting = {*read_redo(store)["recording_id"].to_pylist()}
    assert waiting <= {*Identities.read(store).ids_of([*bad])}, (
        "only what failed again waits to be done again"
    )
    assert {row["uri"] for row in year.read(COMMITS_FOLDER)} <= bad, "of what failed alone"
    away = {uri for uri, content in year.files().items() if content in year.away}
    year.output_name, year.good, year.away, year.corrected = "fresh", {}, {}, {}
    year.asked = {}
    year.night()
    for name in COMPARED:
        fresh = rows_by_uri(year, name)
        # Of what is kept in place of a failure, an earlier version may have been silent.
        assert fresh.keys() - found[name].keys() <= away | kept, "only what is forgotten is missing"
        added = {
            uri for uri in found[name].keys() - fresh.keys()
            if Path(uri).is_relative_to(year.source)
        }  # fmt: skip
        assert added <= kept, "only earlier text is there in addition"
        differ = {
            uri for uri in fresh.keys() & found[name].keys() if fresh[uri] != found[name][uri]
        }
        assert differ <= kept, "only text of an earlier version differs"


def rows_by_uri(year: Year, name: str) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    for row in year.read(name):
        text = plain(((0, row["text"]),)) if "text" in row else ()
        if "gone_since" in row:  # in another run
            row["gone_since"] = row["gone_since"] is not None
        rows.setdefault(row["uri"], []).append((*(row[each] for each in COMPARED[name]), text))
    return {uri: sorted(own, key=repr) for uri, own in rows.items()}


def saw(year: Year, *kinds: str) -> None:
    """See that each kind of event happened."""
    print(dict(year.events))  # noqa: T201  (of interest to who runs a year by hand)
    for kind in (*kinds, *TROUBLES, *UPGRADES.values(), "killed runs", "redo begun"):
        assert year.events[kind], kind


def test_some_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: WrongClock) -> None:
    year = Year(tmp_path, monkeypatch, clock, seed=1, files=3, pages=0.0)
    spend(year, 6, kills=(0,))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_year_of_nights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: WrongClock, seed: int
) -> None:
    year = Year(tmp_path, monkeypatch, clock, seed=seed, files=10)
    spend(year, 365)
    end(year)
    saw(year, *DAYS, "moves that were followed", "corrections that apply", "pruned recordings",
        "texts kept beside a failure")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_year_of_nights_over_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: WrongClock
) -> None:
    year = ManifestYear(tmp_path, monkeypatch, clock, seed=1, files=10)
    spend(year, 365, days=MANIFEST_DAYS)
    end(year)
    saw(year, *MANIFEST_DAYS, "corrections that apply", "pruned recordings")
