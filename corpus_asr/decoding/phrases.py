"""Phrases that a search prefers (shallow fusion): an Aho-Corasick automaton, and where slots are.

In: phrases as tokens with a bonus. Out: what the tokens that may follow gain; log-probabilities are
without it. A slot's gains depend on its own phrases and text alone.

The bonus of a text is the sum, over its positions, of the bonus of the best phrase that begins
there: so much for each token. It is given in advance, token by token, and taken back where the text
leaves the phrase before its end.

Source: Aho and Corasick 1975; Zhao et al. 2019, "Shallow-Fusion End-to-End Contextual Biasing".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.device import upload


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhraseTrie:
    """Phrases as nodes in breadth-first order, so that a node's children follow one another.

    At node 0 no phrase has begun. The lists have an entry per node.
    """

    token: list[int]
    """The token that leads to the node."""
    parent: list[int]
    first: list[int]
    """The first child."""
    count: list[int]
    """How many children."""
    fail: list[int]
    """The node of the longest suffix with which a phrase begins."""
    gain: list[float]
    """What the token to the node gains beyond what it gains at `fail` of the parent."""
    advance: list[float]
    """What was given for phrases that may still be left; taken back by every token that follows,
    of which those that continue a phrase gain more than that."""
    depth: int
    """The longest way from a node to node 0 by `fail`."""

    @classmethod
    def of(
        cls, phrases: Iterable[tuple[Sequence[int], float]], *, first_share: float = 1.0
    ) -> "PhraseTrie":
        """Build the automaton of phrases, each with the bonus of one of its tokens.

        The first token has `first_share` of that.
        """
        children: list[dict[int, int]] = [{}]
        highest, whole = [0.0], [0.0]  # of the phrases through a node; of the one that ends there
        for tokens, bonus in phrases:
            node = 0
            for token_id in tokens:
                if token_id not in children[node]:
                    children[node][token_id] = len(children)
                    children.append({})
                    highest.append(0.0)
                    whole.append(0.0)
                node = children[node][token_id]
                highest[node] = max(highest[node], bonus)
            whole[node] = max(whole[node], bonus * (len(tokens) - 1 + first_share))
        order, token, parent, fail, level = [0], [0], [0], [0], [0]
        first: list[int] = []
        count: list[int] = []
        gain, advance, chain = [0.0], [0.0], [0]
        # Of phrases that have ended: on the way here from node 0; by coming here, with suffixes.
        kept, ended = [0.0], [0.0]
        number = {0: 0}
        for node, made in enumerate(order):  # which grows meanwhile
            first.append(len(order))
            count.append(len(children[made]))
            for token_id, child in sorted(children[made].items()):
                suffix = fail[node]
                while suffix and token_id not in children[order[suffix]]:
                    suffix = fail[suffix]
                suffix = number[children[order[suffix]].get(token_id, 0)] if node else 0
                number[child] = len(order)
                order.append(child)
                token.append(token_id)
                parent.append(node)
                fail.append(suffix)
                level.append(level[node] + 1)
                chain.append(chain[suffix] + 1)
                kept.append(max(kept[node], whole[child]))
                ended.append(kept[-1] - kept[node] + ended[suffix])
                advance.append(max(0.0, highest[child] * (level[-1] - 1 + first_share) - kept[-1]))
                gain.append(advance[-1] + ended[-1] - advance[suffix] - ended[suffix])
        return cls(
            token=token, parent=parent, first=first, count=count, fail=fail, gain=gain,
            advance=advance, depth=max(chain),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhraseLayout:
    """What a step with phrases depends on beside tensors: a recorded step has no other."""

    allocations: int
    """How often the tables were allocated."""
    begins: int
    """Children of a node 0, at most."""
    children: int
    """Children of any other node, at most."""
    depth: int


_COLUMNS = ("token", "first", "count", "fail", "gain", "advance")


class SlotPhrases:
    """The phrases of every slot, and the node that its text has reached.

    The automata that slots have lie in rows of tables, of which the first has no phrases. On the
    device a node is numbered through all rows, so that keys of parent and token ascend, and a key's
    place is its node.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._stride = vocab_size + 1
        self._tries: list[PhraseTrie | None] = [None] * slots  # by slot
        self._rows: list[PhraseTrie | None] = []
        self._nodes = 1  # of a row; the last one is never used
        self._allocations = 0
        self._layout: PhraseLayout | None = None  # until rows change
        self._tables: dict[str, Tensor] = {}
        self._row = torch.zeros(slots, dtype=torch.long, device=device)
        self._node = torch.zeros(slots, dtype=torch.long, device=device)  # in the row

    def layout(self, slots: Sequence[int]) -> PhraseLayout | None:
        """What `slots` need; None where none has phrases."""
        if not self._rows or all(self._tries[slot] is None for slot in slots):
            return None
        if self._layout is None:
            held = [trie for trie in self._rows if trie is not None]
            self._layout = PhraseLayout(
                allocations=self._allocations,
                begins=_power_of_two(max(trie.count[0] for trie in held)),
                children=_power_of_two(max(max(trie.count[1:], default=0) for trie in held)),
                depth=max(trie.depth for trie in held),
            )
        return self._layout

    def admit(
        self,
        slots: Sequence[int],
        index: Int[Tensor, " batch"],
        tries: Sequence[PhraseTrie | None],
    ) -> None:
        """Give `slots`, which `index` names on the device, phrases, of which none has begun."""
        for slot, trie in zip(slots, tries, strict=True):
            self._tries[slot] = trie
        if not self._rows and all(trie is None for trie in tries):
            return
        (rows,) = upload(self._device, [self._row_of(trie) for trie in tries])
        self._row.index_copy_(0, index, rows)
        self._node.index_fill_(0, index, 0)

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
        self._tries[target], self._tries[source] = self._tries[source], None
        if self._rows:
            for held in (self._row, self._node):
                held[target] = held[source]

    def reorder(self, slots: Int[Tensor, " batch"], sources: Int[Tensor, " batch"]) -> None:
        """Let `slots` have said what `sources` said, all at once; their phrases stay."""
        self._node[slots] = self._node[sources]

    def boost(
        self,
        scores: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        layout: PhraseLayout,
    ) -> None:
        """Add, in place, what tokens gain; all of them lose the `advance` of their slot."""
        root, node = self._reached(index)
        for _ in range(self._depth(root, node, layout)):
            count = self._tables["count"][node] * (node != root)
            self._add(scores, root, self._tables["first"][node], count, layout.children)
            node = root + self._tables["fail"][node]
        count = self._tables["count"][root]
        self._add(scores, root, torch.ones_like(root), count, layout.begins)

    def advance(self, index: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """What slots were given in advance so far."""
        return self._tables["advance"][self._reached(index)[1]]

    def advance_after(
        self, tokens: Int[Tensor, " batch"], index: Int[Tensor, " batch"], layout: PhraseLayout
    ) -> Float[Tensor, " batch"]:
        """What slots will have been given in advance once they say `tokens`."""
        root, node = self._reached(index)
        return self._tables["advance"][root + self._after(tokens, root, node, layout)]

    def update(
        self, tokens: Int[Tensor, " batch"], index: Int[Tensor, " batch"], layout: PhraseLayout
    ) -> None:
        """Note what slots said."""
        self._node[index] = self._after(tokens, *self._reached(index), layout)

    def _reached(
        self, index: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
        root = self._row[index] * self._nodes
        return root, root + self._node[index]

    def _depth(
        self, root: Int[Tensor, " batch"], node: Int[Tensor, " batch"], layout: PhraseLayout
    ) -> int:
        # Mostly no phrase has begun; of a GPU the host would have to wait for that.
        nothing_begun = self._device.type == "cpu" and bool((node == root).all())
        return 0 if nothing_begun else layout.depth

    def _after(
        self,
        tokens: Int[Tensor, " batch"],
        root: Int[Tensor, " batch"],
        node: Int[Tensor, " batch"],
        layout: PhraseLayout,
    ) -> Int[Tensor, " batch"]:
        next_node = torch.zeros_like(node)
        for _ in range(self._depth(root, node, layout) + 1):
            key = node * self._stride + tokens + 1
            place = torch.searchsorted(self._tables["key"], key)
            is_child = (self._tables["key"][place] == key) & (next_node == 0)
            next_node = torch.where(is_child, place - root, next_node)
            node = root + self._tables["fail"][node]
        return next_node

    def _add(
        self,
        scores: Float[Tensor, "batch vocab"],
        root: Int[Tensor, " batch"],
        first: Int[Tensor, " batch"],
        count: Int[Tensor, " batch"],
        most: int,
    ) -> None:
        places = torch.arange(most, device=self._device)
        child = (root + first).unsqueeze(1) + places  # (batch, child)
        # Node 0 stands for what is none: its token gains nothing.
        child = torch.where(places < count.unsqueeze(1), child, root.unsqueeze(1))
        scores.scatter_add_(1, self._tables["token"][child], self._tables["gain"][child])

    def _row_of(self, trie: PhraseTrie | None) -> int:
        for row, held in enumerate(self._rows):
            if held is trie and (row == 0) == (trie is None):
                return row
        size = 1 if trie is None else len(trie.token)
        in_use = {id(used_trie) for used_trie in self._tries if used_trie is not None}
        unused = [
            row for row, row_trie in enumerate(self._rows) if row and id(row_trie) not in in_use
        ]
        if not unused or size >= self._nodes:
            unused = self._allocate(unused, size)
        if trie is None:
            return 0
        self._rows[unused[0]] = trie
        self._write(unused[0])
        return unused[0]

    def _allocate(self, unused: list[int], size: int) -> list[int]:
        for row in unused:
            self._rows[row] = None
        if not unused:
            unused = list(range(max(1, len(self._rows)), 2 * max(1, len(self._rows))))
            self._rows += [None] * (unused[-1] + 1 - len(self._rows))
        self._nodes = max(self._nodes, _power_of_two(size + 1))
        self._allocations += 1
        places = len(self._rows) * self._nodes
        self._tables = {
            name: torch.zeros(
                places,
                dtype=torch.float if name in ("gain", "advance") else torch.long,
                device=self._device,
            )
            for name in ("key", *_COLUMNS)
        }
        for row in range(len(self._rows)):
            self._write(row)
        return unused

    def _write(self, row: int) -> None:
        self._layout = None
        trie, start = self._rows[row], row * self._nodes
        key = self._tables["key"][start : start + self._nodes]
        key.fill_((start + self._nodes) * self._stride - 1)  # after those of all nodes
        key[:1].fill_(start * self._stride)  # before those of its children
        for name in _COLUMNS:
            self._tables[name][start : start + self._nodes].fill_(0)
        if trie is None:
            return
        used = slice(start, start + len(trie.token))
        names = ("parent", *_COLUMNS)
        parent, *columns = upload(self._device, *(getattr(trie, name) for name in names))
        for name, column in zip(_COLUMNS, columns, strict=True):
            self._tables[name][used].copy_(column)
        children = (start + parent[1:]) * self._stride + self._tables["token"][used][1:] + 1
        key[1 : len(trie.token)].copy_(children)


def _power_of_two(number: int) -> int:
    # Few sizes, as steps are recorded for each.
    return 1 << max(0, number - 1).bit_length()
