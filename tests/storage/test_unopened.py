"""What a night opens of the archive, held to opening all of it."""

import contextlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus_asr.config.run import RunOptions
from corpus_asr.errors import CorpusAsrError
from corpus_asr.schemas import FILES, OUTCOMES
from corpus_asr.storage.run_state import finish, plan
from corpus_asr.storage.run_state.redo import note_redo
from corpus_asr.storage.run_state.rewriting import write_identities
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.run_tables import FAILED, RunTables
from corpus_asr.storage.run_state.table_names import TABLES_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.local import LocalStore
from tests.storage.test_run_tables import done
from tests.support.runs import REVISION, ManualRun, finish_plan, planned_files
from tests.support.stores import life
from tests.support.tables import commit, files, part, results, rows_of, stored_segments

NIGHTS = 6


@contextlib.contextmanager
def all_opened() -> Iterator[None]:
    """Let plans and finishes read the parts of all recordings."""

    def opened(*arguments: Any, **options: Any) -> RunTables:
        return RunTables(*arguments, **options | {"opened": "true"})

    with pytest.MonkeyPatch.context() as patch:
        for module in (finish, plan):
            patch.setattr(module, "RunTables", opened)
        yield


def copy_of(store: OutputStore) -> OutputStore:
    copied = OutputStore(f"{store.uri}-copy")
    shutil.rmtree(copied.uri, ignore_errors=True)
    shutil.copytree(store.uri, copied.uri)
    return copied


def tables_of(store: OutputStore) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "recordings": rows_of(store.recordings()),
        "outcomes": rows_of(store.outcomes()),
        "segments": rows_of(stored_segments(store)),
    }
    return {name: sorted(table, key=repr) for name, table in rows.items()} | {
        "counts": (store.read_json("run.json") or {}).get("counts"),
        "redo": (store.exists("_run/redo.rows"), store.exists("_SUCCESS")),
    }


def plan_of(job: ManualRun, store: OutputStore, options: RunOptions) -> tuple[Any, Any]:
    made = plan.make_plan(job.config, store, model_revision=REVISION, options=options)
    packed = sorted(planned_files(store, made), key=repr)
    data = made.as_data() | {"uri": None, "name": None, "num_packs": None}
    redo = [] if made.redo is None else sorted(made.redo.to_pylist(), key=repr)
    return made, (data, packed, redo, sorted(made.moves))


class Archive:
    """A folder of files that change from night to night."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.job, self.chance, self.number = ManualRun(folder, ()), chance, 0
        self.num_unopened: list[int] = []
        Path(self.job.store.uri).mkdir()

    def change(self) -> None:
        for _ in range(self.chance.randint(2, 5)):
            self.put(f"new-{self.number}.wav")
        for path in sorted(self.job.source.iterdir()):
            what = self.chance.random()
            if what < 0.08:
                path.unlink()
            elif what < 0.16:
                self.put(path.name)
            elif what < 0.2:
                path.rename(path.with_name(f"moved-{self.number}.wav"))
            elif what < 0.23:
                os.utime(path, (0, self.number))
            self.number += 1

    def put(self, name: str) -> None:
        self.number += 1
        (self.job.source / name).write_text(f"{self.number:<{self.chance.choice([20, 30])}}")

    def night(self) -> None:
        job, chance = self.job, self.chance
        redo = chance.choice([None] * 6 + ["all", "uri like '%1%'"])
        options = RunOptions(redo=redo if job.store.exists("run.json") else None)
        with all_opened():
            _, expected = plan_of(job, job.store, options)
        job.plan, planned = plan_of(job, job.store, options)
        with RunTables(job.store, opened=FAILED) as tables:
            self.num_unopened.append(len(tables.table("from unopened")))
        assert planned == expected
        if job.plan.redo is not None:
            note_redo(job.store, job.plan.redo)
        name = fingerprint(job.config, REVISION)
        job.run = begin_run(job.store, job.config, name, redo=options.redo is not None)
        write_identities(job.store, job.plan.identities)
        for file in planned_files(job.store, job.plan):
            self.transcribe(Path(file["uri"]).name)
        if chance.random() < 0.3:
            with life(chance.randint(0, 12)):
                job.finish()
            if chance.random() < 0.5:
                return
        copied = copy_of(job.store)
        with all_opened():
            finish_plan(copied, job.run, job.config, job.plan)
        job.finish()
        assert tables_of(job.store) == tables_of(copied)

    def transcribe(self, name: str) -> None:
        what = self.chance.random()
        if what < 0.1:
            return
        if what < 0.25:
            self.job.fail(name, error_kind=self.chance.choice(["not_audio", "access_denied"]))
        elif what < 0.4:
            self.job.commit(name, last_part=False)
            if what < 0.35:
                self.job.commit(name, 1)
        else:
            said: dict[str, Any] = {"status": "no_speech", "segments": []} if what > 0.9 else {}
            self.job.commit(name, **said)


@pytest.mark.long
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_a_night_leaves_what_opening_all_does(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corpus_asr.storage.run_state.finish.RECORDINGS_PER_OBJECT", 8)
    archive = Archive(tmp_path, random.Random(seed))
    for _ in range(NIGHTS):
        archive.change()
        archive.night()
    assert max(archive.num_unopened) > 3, "some nights open a part alone"


def archive_of(folder: Path, *names: str) -> OutputStore:
    store = OutputStore(str(folder / "output"))
    commit(store, results(*(part(name, 0, texts=[name]) for name in names)))
    done(store, files(*names))
    return store


def test_a_folder_without_changes_opens_nothing(tmp_path: Path) -> None:
    store = archive_of(tmp_path, "a", "b")
    with RunTables(store, opened=FAILED) as tables:
        assert tables.rows("select count(*) from outcomes") == [(0,)]
        assert tables.remaining(files("a", "b").slice(0)).num_rows == 0
        assert tables.num_versions == 2


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_damaged_table_of_recordings_is_made_again_as_the_message_says(
    is_removed: bool, tmp_path: Path
) -> None:
    store = archive_of(tmp_path, "a", "b", "c")
    expected = tables_of(store)
    [name] = store.names("recordings")
    path = Path(store.address(name))
    path.unlink() if is_removed else path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorpusAsrError, match=f"{name}.*remove .*{TABLES_NAME}"):
        done(store, files("a", "b", "c"))
    path.unlink(missing_ok=True)
    Path(store.address(TABLES_NAME)).unlink()
    done(store, files("a", "b", "c"))
    assert tables_of(store) == expected
    assert store.is_settled


def test_the_cost_of_a_night_does_not_grow_with_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: Counter[str] = Counter()
    for name in ("info", "read_range", "write", "create", "swap", "remove"):
        request = getattr(LocalStore, name)

        def counted(*args: Any, _name: str = name, _request: Any = request, **named: Any) -> Any:
            requests[_name] += 1
            return _request(*args, **named)

        monkeypatch.setattr(LocalStore, name, counted)
    small, large = (night_among(tmp_path / str(n), n, requests) for n in (2_000, 20_000))
    assert small[0] == large[0] == 10, "the new ones"
    assert large[1].total() <= small[1].total(), "small objects are merged"


def night_among(folder: Path, count: int, requests: Counter[str]) -> tuple[int, Counter[str]]:
    """Return the rows that a night of ten new recordings folds, and its requests."""
    store = OutputStore(str(folder))
    names = [f"{number:06}" for number in range(count)]
    listing = pa.RecordBatch.from_pydict(
        {"recording_id": names, "uri": names, "size_bytes": [1] * count, "etag": names,
         "metadata": [None] * count}, schema=FILES,
    )  # fmt: skip
    constant = {"run_id": "run", "part": 0, "last_part": True, "status": "no_speech",
                "segments_written": 0, "duration_s": 1.0}  # fmt: skip
    columns = [
        listing.column(field.name) if field.name in FILES.names
        else pa.repeat(pa.scalar(constant.get(field.name), field.type), count)
        for field in OUTCOMES
    ]  # fmt: skip
    outcomes = pa.table(columns, schema=OUTCOMES)
    status = np.array(["no_speech"] * count, dtype=object)
    status[:5] = "failed"
    place = OUTCOMES.get_field_index("status")
    outcomes = outcomes.set_column(place, OUTCOMES.field(place), pa.array(status, pa.string()))
    store.replace((), store.write_tables(outcomes, ()))
    done(store, listing)
    commit(store, results(*(part(f"new-{number}", 0, texts=[]) for number in range(10))))
    with RunTables(store, opened="false") as tables:
        [(rows,)] = tables.rows("select count(*) from outcomes")
    requests.clear()
    done(store, listing, files(*(f"new-{number}" for number in range(10))))
    return rows, requests.copy()
