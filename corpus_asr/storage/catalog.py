"""The finished tables of an output folder in an Iceberg catalog: the same Parquet files, no copies.

Each table becomes one of the catalog's, whose current snapshot lists exactly the files that the
folder has: what a finish merged, replaced or removed leaves in the snapshot that adds what it
wrote. Older snapshots name files that are gone, so they expire, and their manifests are removed.
A manifest counts values and holds none of them: no text of a removed recording stays in one.

Safe to be killed anywhere, and to be repeated: a commit compares the folder with the catalog, and
an older snapshot is there until nothing of it is left.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from corpus_asr.config.document import hide_secrets
from corpus_asr.config.run import OutputSettings
from corpus_asr.errors import ConfigError, CorpusAsrError, EngineError, install_words
from corpus_asr.logs import event
from corpus_asr.schemas import (
    DUPLICATES,
    LABELS,
    OUTCOMES,
    RECORDINGS,
    SEGMENTS,
    SPEAKERS,
    VOICES,
)
from corpus_asr.storage.run_state.tables import (
    DUPLICATES_FOLDER,
    LABEL_ROWS,
    OUTCOMES_FOLDER,
    READERS,
    RECORDINGS_FOLDER,
    SEGMENT_ROWS,
    SPEAKERS_FOLDER,
    VOICES_FOLDER,
    OutputStore,
)
from corpus_asr.storage.stores.uri import LOCAL, public, redact_uri, scheme_of

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog as IcebergCatalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

TABLES: Final[Mapping[str, pa.Schema]] = MappingProxyType({
    SEGMENT_ROWS.folder: SEGMENTS, LABEL_ROWS.folder: LABELS, OUTCOMES_FOLDER: OUTCOMES,
    RECORDINGS_FOLDER: RECORDINGS, SPEAKERS_FOLDER: SPEAKERS, VOICES_FOLDER: VOICES,
    DUPLICATES_FOLDER: DUPLICATES,
})  # fmt: skip
"""By folder, which is also the table's name in the catalog."""
FOLDER_PROPERTY = "corpus-asr.output"
RUN_PROPERTY = "corpus-asr.run-id"
_NAME_MAPPING = "schema.name-mapping.default"  # our files have no field numbers
_PROPERTIES = {
    "write.metadata.metrics.default": "counts",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
}
# PyIceberg's names of what `output.storage_options` has; output.catalog may say otherwise.
_OF_STORAGE_OPTIONS = {
    "endpoint_url": "s3.endpoint",
    "key": "s3.access-key-id",
    "secret": "s3.secret-access-key",
    "token": "s3.session-token",
    "profile": "s3.profile-name",
}
_CUT_SHORT = "?#"  # Iceberg's readers take these in a path for the end of it

_LOG = logging.getLogger(__name__)


class Catalog:
    """The namespace of a catalog that the tables of an output folder are registered in."""

    def __init__(self, output: OutputSettings) -> None:
        """Asks the catalog nothing yet.

        Raises:
            ConfigError: a package is missing, or no reader would find the folder by its address.
        """
        settings = dict(output.catalog)
        self.name, self.namespace = settings.pop("name", "default"), settings.pop("namespace")
        self._folder = OutputStore.of(output).uri
        self._properties = settings
        self._storage = output.storage_options
        given = {"endpoint_url": output.endpoint_url, **self._storage.values()}
        for option, name in _OF_STORAGE_OPTIONS.items():
            if given.get(option) is not None:
                self._properties.setdefault(name, given[option])
        needed = ["pyiceberg", *(["sqlalchemy"] if settings.get("type") == "sql" else [])]
        missing = [package for package in needed if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"output.catalog: {' and '.join(missing)} cannot be imported, expected the "
                f"packages that write Iceberg tables; {install_words('iceberg')}, or leave "
                "output.catalog out"
            )
        if any(character in self._folder for character in _CUT_SHORT):
            raise ConfigError(
                f"output.catalog: found ? or # in {redact_uri(self._folder)}, expected an "
                "address that Iceberg's readers find; choose another output.uri"
            )

    def __str__(self) -> str:
        kind = self._properties.get("type")
        return f"{self.namespace} of the Iceberg catalog {self.name}{f' ({kind})' if kind else ''}"

    def check(self) -> None:
        """Ask the catalog, and change nothing.

        Raises:
            ConfigError: a table there is another folder's.
            EngineError: the catalog refuses, or does not answer.
        """
        with self._connected("asking") as catalog:
            for folder in TABLES:
                self._table(catalog, folder)

    def register(self, store: OutputStore, *, run_id: str) -> dict[str, int]:
        """Make each table of the catalog list the files of its folder; return their numbers.

        `store` is the folder as its run holds it. New snapshots name the run.

        Raises:
            ConfigError: a table there is another folder's.
            EngineError: the catalog refuses, or does not answer; registering again repairs it.
        """
        registered: dict[str, int] = {}
        with self._connected("registering the tables in") as catalog:
            for folder, schema in TABLES.items():
                sizes = {
                    _location(store.address(name)): size
                    for name, size in store.sizes(folder).items()
                }
                table = self._table(catalog, folder)
                if table is None and not sizes:
                    continue
                if table is None:
                    table = self._created(catalog, folder, schema)
                _widen(table, schema)
                _list(table, sizes, {RUN_PROPERTY: run_id})
                _expire(table)
                registered[folder] = len(sizes)
        return registered

    @contextlib.contextmanager
    def _connected(self, doing: str) -> Iterator["IcebergCatalog"]:
        """Connect to the catalog, and say of whatever fails what it is about."""
        try:
            from pyiceberg.catalog import load_catalog

            # Of what is not for users: columns without bounds, say.
            logging.getLogger("pyiceberg").setLevel(logging.ERROR)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with load_catalog(self.name, **self._properties) as catalog:
                    yield catalog
        except CorpusAsrError:
            raise
        # Of the catalog's library, its database, its server, or the store of its metadata.
        except Exception as error:
            raise EngineError(
                f"{doing} {self}: {type(error).__name__}: "
                f"{self._storage.hide(hide_secrets(str(error)))}; correct "
                "output.catalog or mend the catalog. The tables of "
                f"{redact_uri(self._folder)} are not touched by it: running again registers "
                "those that are finished"
            ) from error

    def _identifier(self, folder: str) -> tuple[str, ...]:
        return (*self.namespace.split("."), folder)

    def _table(self, catalog: "IcebergCatalog", folder: str) -> "Table | None":
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

        try:
            table = catalog.load_table(self._identifier(folder))
        except (NoSuchTableError, NoSuchNamespaceError):
            return None
        ours, found = public(self._folder), table.properties.get(FOLDER_PROPERTY)
        if found != ours:
            whose = "a table that others made" if found is None else f"the table of {found}"
            raise ConfigError(
                f"registering {redact_uri(self._folder)} in {self}: found {folder} there, "
                f"{whose}, expected none; choose another namespace in output.catalog, or drop that "
                "table in the catalog, which removes no file of the folder"
            )
        return table

    def _created(self, catalog: "IcebergCatalog", folder: str, schema: pa.Schema) -> "Table":
        identifier = self._identifier(folder)
        catalog.create_namespace_if_not_exists(identifier[:-1])
        properties = {**_PROPERTIES, FOLDER_PROPERTY: public(self._folder)}
        return catalog.create_table(identifier, schema, properties=properties)


def _location(address: str) -> str:
    """Return an address as every reader of Iceberg takes it: a plain path need not be local."""
    return f"file://{address}" if scheme_of(address) == LOCAL else address


def _widen(table: "Table", schema: pa.Schema) -> None:
    """Give a table the columns that it lacks, and the names by which files are read."""
    if _NAME_MAPPING not in table.properties:  # new, or its maker was killed right then
        with table.transaction() as transaction:
            names = table.schema().name_mapping.model_dump_json()
            transaction.set_properties({_NAME_MAPPING: names})
    with table.update_schema() as update:  # commits nothing where nothing is new
        update.union_by_name(schema)


def _list(table: "Table", sizes: Mapping[str, int], properties: dict[str, str]) -> None:
    """Make the current snapshot list these files and no other, by one commit or none."""
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    listed = {file.file_path: file for file in _listed(table)}
    gone = [file for path, file in listed.items() if not _is_same(file, sizes.get(path))]
    kept = listed.keys() - {file.file_path for file in gone}
    new = sorted(sizes.keys() - kept)
    if not gone and not new:
        return

    def described(path: str) -> "DataFile":
        return parquet_file_to_data_file(table.io, table.metadata, path)

    with ThreadPoolExecutor(READERS, thread_name_prefix="register") as pool:
        files = list(pool.map(described, new))
    with table.transaction() as transaction:
        update = transaction.update_snapshot(snapshot_properties=properties)
        # An append by its name is one that readers can follow.
        with update.overwrite() if gone else update.fast_append() as snapshot:
            for file in gone:
                snapshot.delete_data_file(file)
            for file in files:
                snapshot.append_data_file(file)


def _listed(table: "Table") -> Iterator["DataFile"]:
    # Not by a scan, which leaves out files without rows.
    from pyiceberg.manifest import ManifestContent

    snapshot = table.current_snapshot()
    for manifest in snapshot.manifests(table.io) if snapshot is not None else ():
        if manifest.content == ManifestContent.DATA:
            for entry in manifest.fetch_manifest_entry(table.io):
                yield entry.data_file


def _is_same(file: "DataFile", size: int | None) -> bool:
    # Stores that do not say a size say 0; names are never used twice all the same.
    return size is not None and size in (0, file.file_size_in_bytes)


def _expire(table: "Table") -> None:
    """Forget all snapshots but the current one and those that somebody has named."""
    named = {reference.snapshot_id for reference in table.metadata.refs.values()}
    old = [each for each in table.metadata.snapshots if each.snapshot_id not in named]
    if not old:
        return
    needed = {
        manifest.manifest_path
        for snapshot in table.metadata.snapshots
        if snapshot.snapshot_id in named
        for manifest in snapshot.manifests(table.io)
    }
    for snapshot in old:
        try:
            paths = [manifest.manifest_path for manifest in snapshot.manifests(table.io)]
        except FileNotFoundError:  # a finish that was killed removed it, after what it names
            continue
        for path in (*(path for path in paths if path not in needed), snapshot.manifest_list):
            _remove(table, path)
    # Last: killed before, the next finish still knows what there is to remove.
    table.maintenance.expire_snapshots().by_ids([each.snapshot_id for each in old]).commit()


def _remove(table: "Table", path: str) -> None:
    try:
        table.io.delete(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # a catalog may sign reads and writes alone
        event(_LOG, logging.WARNING, "manifest_left", path=path, error=str(error))
