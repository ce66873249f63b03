"""Finished tables in an Iceberg catalog, read back through it, wherever registering is killed."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpus_asr.config.load import resolved
from corpus_asr.config.run import OutputSettings
from corpus_asr.errors import ConfigError, EngineError
from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage import catalog as module
from corpus_asr.storage.catalog import FOLDER_PROPERTY, RUN_PROPERTY, Catalog
from corpus_asr.storage.run_state.run_files import safe_config
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import ManualRun
from tests.support.stores import S3Server

pytest.importorskip("pyiceberg")
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

pytestmark = pytest.mark.long

WORDS = [{"word": " Hi.", "start_s": 0.0, "end_s": 1.0, "probability": 0.5}]


class Lake:
    """A job whose tables are registered in a catalog of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "name": "lake", "namespace": "podcasts", "type": "sql",
            "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse",
        }  # fmt: skip
        output = {"uri": str(folder / "output"), "catalog": self.settings}
        self.job = ManualRun(folder, output=output)

    def night(self, *names: str, text: str = " Hi.") -> None:
        """Commit some recordings, and finish."""
        self.job.begin()
        for name in names:
            segment = {"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": text, "words": WORDS}
            self.job.commit(name, segments=[segment])
        self.job.finish()

    def register(self) -> dict[str, int]:
        run_id = self.job.run.run_id
        return Catalog(self.job.config.output).register(self.job.store, run_id=run_id)

    def table(self, name: str) -> Table:
        with load_catalog(**self.settings) as catalog:
            return catalog.load_table(f"podcasts.{name}")

    def rows(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(name).scan().to_arrow().to_pylist()
        return rows

    def check(self, *names: str) -> None:
        """The catalog has what the folder has, and nothing of what was."""
        left = {path.name for path in (self.folder / "warehouse").rglob("*.avro")}
        for name in names or ("segments", "outcomes", "recordings"):
            table = self.table(name)
            folder = self.folder / "output" / name
            listed = table.inspect.files()["file_path"].to_pylist()
            assert sorted(listed) == sorted(f"file://{path}" for path in folder.glob("*.parquet"))
            plain = pq.read_table(folder).to_pylist()
            # PyIceberg 0.12 reads a null list as an empty one.
            found, expected = (
                sorted(repr({key: value or None for key, value in row.items()}) for row in rows)
                for rows in (self.rows(name), plain)
            )
            assert found == expected
            snapshot = table.current_snapshot()
            assert snapshot is not None
            assert [each.snapshot_id for each in table.metadata.snapshots] == [snapshot.snapshot_id]
            left.discard(Path(snapshot.manifest_list).name)
            left -= {Path(each.manifest_path).name for each in snapshot.manifests(table.io)}
        assert not left


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_each_finish_is_one_snapshot_that_lists_the_files_of_the_folder(lake: Lake) -> None:
    lake.night("a.wav")
    assert lake.register() == {"segments": 1, "outcomes": 1, "recordings": 1}
    lake.check()
    lake.night("b.wav", "c.wav")  # which merges all three
    lake.register()
    lake.check()
    table = lake.table("segments")
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.sequence_number == 2
    assert snapshot.summary is not None
    assert snapshot.summary[RUN_PROPERTY] == lake.job.run.run_id
    assert table.properties[FOLDER_PROPERTY] == lake.job.store.uri
    # Names, order and what the columns are; lists of structures, too.
    assert [field.name for field in table.schema().fields] == SEGMENTS.names
    field = SEGMENTS.field("start_s")
    assert table.schema().find_field("start_s").doc == field.metadata[b"doc"].decode()
    assert [row["words"] for row in lake.rows("segments")] == [WORDS] * 3
    lake.job.begin()
    lake.register()  # nothing new
    assert lake.table("segments").metadata_location == table.metadata_location


def test_a_table_that_nothing_is_in_has_its_columns(lake: Lake) -> None:
    lake.night()
    lake.register()
    lake.register()  # a file without rows is no new one
    lake.check()
    assert lake.rows("segments") == []
    assert lake.table("segments").scan().to_arrow().column_names == SEGMENTS.names
    lake.night("a.wav")
    lake.register()
    lake.check()


def test_no_text_of_a_removed_recording_stays_in_the_catalog(lake: Lake) -> None:
    lake.night("a.wav", text=" Aardvark secret.")
    lake.register()
    lake.job.store.remove_all(lake.job.store.names("segments"))
    lake.job.source.joinpath("a.wav").write_bytes(b"another version")
    lake.night("a.wav", "b.wav")
    lake.register()
    lake.check()
    for path in (lake.folder / "warehouse").rglob("*"):
        assert path.is_dir() or b"ardvark" not in path.read_bytes()


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_a_registration_killed_anywhere_is_finished_by_the_next(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TABLES", {"segments": SEGMENTS})
    left = 0

    def killing(done: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise KilledError
            return done(*args, **kwargs)

        return call

    for at in itertools.count():
        (lake.job.source / "a.wav").write_bytes(b"version %d" % at)
        lake.night("a.wav")
        with monkeypatch.context() as patched:
            patched.setattr(SqlCatalog, "create_table", killing(SqlCatalog.create_table))
            patched.setattr(SqlCatalog, "commit_table", killing(SqlCatalog.commit_table))
            patched.setattr(PyArrowFileIO, "delete", killing(PyArrowFileIO.delete))
            left = at
            try:
                lake.register()
            except KilledError:
                # What was half done is there for the next night, every other time.
                if at % 2:
                    continue
        lake.register()
        lake.check("segments")
        if left > 0:
            break
    assert at > 3


def test_storage_options_are_those_of_the_catalog_unless_it_has_its_own(lake: Lake) -> None:
    options = {"key": "mine", "secret": "hidden", "endpoint_url": "http://store"}
    catalog = lake.settings | {"s3.access-key-id": "catalog's"}
    output = OutputSettings.model_validate(
        {"uri": "s3://bucket/output", "storage_options": options, "catalog": catalog}
    )
    properties = Catalog(output)._properties
    assert {name: text for name, text in properties.items() if name.startswith("s3.")} == {
        "s3.access-key-id": "catalog's",
        "s3.secret-access-key": "hidden",
        "s3.endpoint": "http://store",
    }


def test_tables_on_an_object_store_are_read_through_its_endpoint(
    tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    there = f"s3://{bucket}"
    lake = Lake(tmp_path)
    lake.night("a.wav")
    output = OutputSettings(
        uri=f"{there}/output",
        endpoint_url=s3.endpoint_url,
        catalog=lake.settings | {"warehouse": f"{there}/warehouse"},
    )
    store = OutputStore.of(output)
    for folder in ("segments", "outcomes", "recordings"):
        for name in lake.job.store.names(folder):
            store.write_bytes(name, (tmp_path / "output" / name).read_bytes())
    for _ in range(2):
        Catalog(output).register(store, run_id="r")
    with load_catalog(**lake.settings, **{"s3.endpoint": s3.endpoint_url}) as catalog:
        table = catalog.load_table("podcasts.segments")
        assert table.location() == f"{there}/warehouse/podcasts/segments"
        assert table.inspect.files()["file_path"].to_pylist() == [
            f"{there}/output/{name}" for name in store.names("segments")
        ]
        assert table.scan().to_arrow()["text"].to_pylist() == [" Hi."]


def test_columns_that_a_later_version_adds_are_null_before(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = SEGMENTS.remove(SEGMENTS.get_field_index("words"))
    lake.night("a.wav")
    (name,) = lake.job.store.names("segments")
    lake.job.store.write_table(name, lake.job.store.read_table(name, older))
    monkeypatch.setattr(module, "TABLES", {"segments": older})
    lake.register()
    assert "words" not in lake.table("segments").schema().column_names
    monkeypatch.setattr(module, "TABLES", {"segments": SEGMENTS})
    lake.job.begin()
    lake.job.commit("b.wav", segments=[{"segment": 0, "text": " Hi.", "words": WORDS}])
    lake.register()
    words = {Path(row["uri"]).name: row["words"] for row in lake.rows("segments")}
    assert words == {"a.wav": None, "b.wav": WORDS}


def test_another_folder_s_tables_are_left_alone(lake: Lake, tmp_path: Path) -> None:
    lake.night("a.wav")
    lake.register()
    other = lake.job.config.output.model_copy(update={"uri": str(tmp_path / "other")})
    for act in (Catalog(other).check, lambda: Catalog(other).register(lake.job.store, run_id="r")):
        with pytest.raises(ConfigError, match=rf"found segments there, the table of {tmp_path}"):
            act()
    Catalog(lake.job.config.output).check()


def test_a_catalog_that_is_down_says_that_the_tables_are_finished(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.night("a.wav")
    settings = lake.settings | {"uri": f"sqlite:///{tmp_path}/no/such/folder/catalog.db"}
    output = OutputSettings(uri=lake.job.store.uri, catalog=settings)
    words = r"registering the tables in podcasts of the Iceberg catalog lake \(sql\): .*unable to"
    with pytest.raises(EngineError, match=words) as caught:
        Catalog(output).register(lake.job.store, run_id="r")
    assert "running again registers" in str(caught.value)
    lake.register()
    lake.check()


def test_what_cannot_work_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"namespace": "a", "type": "sql"}
    with pytest.raises(ConfigError, match=r"found \? or # in s3://b/a#b"):
        Catalog(OutputSettings(uri="s3://b/a#b", catalog=settings))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pyiceberg\["):
        Catalog(OutputSettings(uri="out", catalog=settings))


@pytest.mark.parametrize("catalog", [{"type": "sql"}, {"namespace": ""}, {"namespace": "a..b"}])
def test_a_namespace_is_needed(catalog: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected `namespace` among its keys"):
        OutputSettings(uri="out", catalog=catalog)


def test_credentials_of_a_catalog_are_shown_nowhere(lake: Lake) -> None:
    catalog = {
        "namespace": "a", "uri": "postgresql://me:hunter2@db/x", "credential": "hunter2",
        "s3.secret-access-key": "hunter2", "header.X-Mine": "hunter2",
    }  # fmt: skip
    config = lake.job.config.model_copy(
        update={"output": OutputSettings(uri="out", catalog=catalog)}
    )
    for shown in (safe_config(config), resolved(config)):
        assert "hunter2" not in str(shown)
        assert shown["output"]["catalog"]["namespace"] == "a"
    assert config.output.catalog == catalog
