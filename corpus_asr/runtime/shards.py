"""What a driver does of a plan that it shares: its packs, without what was committed of them."""

from collections import defaultdict
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.runtime.commit import TALLIED, Tally, tally_of
from corpus_asr.runtime.passes import WRITTEN, Done
from corpus_asr.schemas import OUTCOMES, PACKS
from corpus_asr.storage.run_state.lock import Shard
from corpus_asr.storage.run_state.plan import FileSample, Plan
from corpus_asr.storage.run_state.shared_plan import SharedPlan
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore, projected
from corpus_asr.storage.stores.members import located


def take_shard(shared: SharedPlan, store: OutputStore, shard: Shard) -> tuple[Plan, Tally]:
    """Write the packs of a shard, without what drivers of it committed, and return the rest.

    The counts are of what was committed.
    """
    done, before = _committed(shared, store, shard)
    plan = replace(
        shared.plan, num_remaining=0, num_remaining_bytes=0, num_packs=0, remaining=FileSample(),
        own_packs=[
            f"{shared.folder(shard)}packs/{name.rpartition('/')[2]}"
            for name in shared.plan.pack_names
        ],
    )  # fmt: skip
    for planned, name in zip(shared.plan.pack_names, plan.pack_names, strict=True):
        packs = store.read_table(planned, PACKS)
        own = packs.filter(packs["pack_id"].to_numpy() % shared.of == shard.number - 1)
        if before.parts:
            own = _without(own, done.left(store, [own]))
        files = pc.list_flatten(own["files"].combine_chunks()).to_pylist()
        plan.num_remaining += len(files)
        plan.num_remaining_bytes += pc.sum(own["pack_bytes"]).as_py() or 0
        plan.num_packs += own.num_rows
        plan.remaining.add(
            [file["recording_id"] for file in files],
            [located(file["uri"], file["etag"]) for file in files],
            [file["size_bytes"] for file in files],
        )
        store.write_table(name, own)
    return plan, before


def _committed(shared: SharedPlan, store: OutputStore, shard: Shard) -> tuple[Done, Tally]:
    schema = projected(OUTCOMES, ["run_id", *dict.fromkeys((*WRITTEN.names, *TALLIED))])
    names = [name for name in store.names(OUTCOMES_FOLDER) if shard.is_in(name)]
    found = [each.rows for each in store.committed(schema.names, names)]
    rows = pa.Table.from_batches(found, schema)
    # The same shard of an earlier plan has other runs.
    rows = rows.filter(pc.equal(rows["run_id"], shared.run.run_id))
    done = Done()
    done.add(rows.select(WRITTEN.names).cast(WRITTEN))
    return done, tally_of(rows)


def end_shard(
    shared: SharedPlan, store: OutputStore, shard: Shard, tally: Tally, activity: Activity
) -> None:
    """Note that a shard is done."""
    shared.end(store, shard, committed=asdict(tally), activity=asdict(activity))


def totals(shared: SharedPlan, store: OutputStore) -> tuple[Tally, Activity]:
    """Add up what the shards came to that are done."""
    ended = [each for shard in shared.shards if (each := shared.ended(store, shard)) is not None]
    tallies = [_tally(each["committed"]) for each in ended]
    return sum(tallies, Tally()), Activity.total(
        Activity.from_data(each["activity"]) for each in ended
    )


def _without(packs: pa.Table, left: list[dict[str, Any]]) -> pa.Table:
    """Return packs with those of their files that are left."""
    lists = packs["files"].combine_chunks()
    ids = pc.struct_field(pc.list_flatten(lists), "recording_id").to_pylist()
    place_of = dict(zip(ids, pc.list_parent_indices(lists).to_pylist(), strict=True))
    files: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for file in left:
        files[place_of[file["recording_id"]]].append(file)
    rows = [
        {
            "pack_id": packs["pack_id"][place].as_py(),
            "pack_bytes": sum(file["size_bytes"] or 0 for file in own),
            "files": own,
        }
        for place, own in sorted(files.items())
    ]
    return pa.Table.from_pylist(rows, schema=PACKS)


def _tally(data: dict[str, Any]) -> Tally:
    failures = tuple(
        FailureCount(**each | {"examples": tuple(each["examples"])}) for each in data["failures"]
    )
    return Tally(**data | {"failures": failures})
