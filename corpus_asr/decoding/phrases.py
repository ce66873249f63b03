"""Phrase boosting (shallow fusion): an Aho-Corasick automaton, and the state of each slot in it.

In: phrases as tokens with a bonus. Out: score bonuses of possible next tokens; log-probabilities
exclude them. A slot's bonuses depend on its own phrases and text only. `HotwordTries` makes the
automata of hotwords, in every spelling that a checkpoint may produce.

The bonus of a text is the sum, over its positions, of the bonus of the best phrase that starts
there, proportional to its tokens. It is granted in advance, token by token, and revoked if the text
leaves the phrase before its end.

Source: Aho and Corasick 1975; Zhao et al. 2019, "Shallow-Fusion End-to-End Contextual Biasing".
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.config.decoding import Hotword
from corpus_asr.decoding.device import upload
from corpus_asr.errors import ConfigError, ItemError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhraseTrie:
    """An automaton with nodes in breadth-first order, so that a node's children are adjacent.

    Node 0 is the state outside of phrases. The lists have an entry per node.
    """

    token: list[int]
    """Token of the edge into the node."""
    parent: list[int]
    first: list[int]
    """Index of the first child."""
    count: list[int]
    """Number of children."""
    fail: list[int]
    """Failure link: the node of the longest suffix that is a phrase prefix."""
    gain: list[float]
    """Bonus of the node's token in addition to its bonus at `fail` of the parent."""
    advance: list[float]
    """Bonus granted in advance for unfinished phrases. Every next token revokes it; tokens that
    continue a phrase have a larger gain."""
    depth: int
    """Maximum number of failure links from a node to node 0."""

    @classmethod
    def of(
        cls, phrases: Iterable[tuple[Sequence[int], float]], *, first_share: float = 1.0
    ) -> "PhraseTrie":
        """Build the automaton of phrases, each with the bonus per token.

        The first token has `first_share` of it.
        """
        children: list[dict[int, int]] = [{}]
        highest, whole = [0.0], [0.0]  # highest bonus through a node; bonus of its own phrase
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
        # Bonuses of completed phrases: on the path from node 0; at this node, including suffixes.
        kept, ended = [0.0], [0.0]
        number = {0: 0}
        for node, made in enumerate(order):  # grows during the loop
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
    """Parameters besides tensors of a step with phrases; a recorded step has fixed ones."""

    allocations: int
    """Number of allocations of the tables."""
    begins: int
    """Maximum number of children of a node 0."""
    children: int
    """Maximum number of children of any other node."""
    depth: int


_COLUMNS = ("token", "first", "count", "fail", "gain", "advance")


class SlotPhrases:
    """The phrases of every slot, and the node that its text has reached.

    Tables have one row per automaton in use; the first row is without phrases. On the device, node
    numbers continue across rows, so that keys of parent and token ascend, and the position of a key
    is its node.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._stride = vocab_size + 1
        self._tries: list[PhraseTrie | None] = [None] * slots  # by slot
        self._rows: list[PhraseTrie | None] = []
        self._nodes = 1  # per row; the last one is unused
        self._allocations = 0
        self._layout: PhraseLayout | None = None  # None after rows have changed
        self._tables: dict[str, Tensor] = {}
        self._row = torch.zeros(slots, dtype=torch.long, device=device)
        self._node = torch.zeros(slots, dtype=torch.long, device=device)  # in the row

    def layout(self, slots: Sequence[int]) -> PhraseLayout | None:
        """Return the parameters for `slots`; None if none has phrases."""
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
        """Set phrases of `slots`, with `index` on the device, and reset their state to node 0."""
        for slot, trie in zip(slots, tries, strict=True):
            self._tries[slot] = trie
        if not self._rows and all(trie is None for trie in tries):
            return
        (rows,) = upload(self._device, [self._row_of(trie) for trie in tries])
        self._row.index_copy_(0, index, rows)
        self._node.index_fill_(0, index, 0)

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target` and free `source`."""
        self._tries[target], self._tries[source] = self._tries[source], None
        if self._rows:
            for held in (self._row, self._node):
                held[target] = held[source]

    def reorder(self, slots: Int[Tensor, " batch"], sources: Int[Tensor, " batch"]) -> None:
        """Copy the states of `sources` to `slots` at once; phrases are unchanged."""
        self._node[slots] = self._node[sources]

    def boost(
        self,
        scores: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        layout: PhraseLayout,
    ) -> None:
        """Add, in place, the gains of tokens."""
        root, node = self._reached(index)
        for _ in range(self._depth(root, node, layout)):
            count = self._tables["count"][node] * (node != root)
            self._add(scores, root, self._tables["first"][node], count, layout.children)
            node = root + self._tables["fail"][node]
        count = self._tables["count"][root]
        self._add(scores, root, torch.ones_like(root), count, layout.begins)

    def advance(self, index: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the bonus granted to slots in advance so far."""
        return self._tables["advance"][self._reached(index)[1]]

    def advance_after(
        self, tokens: Int[Tensor, " batch"], index: Int[Tensor, " batch"], layout: PhraseLayout
    ) -> Float[Tensor, " batch"]:
        """Return the bonus granted to slots in advance after `tokens`."""
        root, node = self._reached(index)
        return self._tables["advance"][root + self._after(tokens, root, node, layout)]

    def update(
        self, tokens: Int[Tensor, " batch"], index: Int[Tensor, " batch"], layout: PhraseLayout
    ) -> None:
        """Advance the states of slots by their tokens."""
        self._node[index] = self._after(tokens, *self._reached(index), layout)

    def _reached(
        self, index: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
        root = self._row[index] * self._nodes
        return root, root + self._node[index]

    def _depth(
        self, root: Int[Tensor, " batch"], node: Int[Tensor, " batch"], layout: PhraseLayout
    ) -> int:
        # Usually no phrase has begun; on a GPU the check would synchronize.
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
        # Node 0 stands for a missing child: its token gains nothing.
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
        key.fill_((start + self._nodes) * self._stride - 1)  # after the keys of all nodes
        key[:1].fill_(start * self._stride)  # before the keys of its children
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
    # Rounded to few sizes, as steps are recorded for each.
    return 1 << max(0, number - 1).bit_length()


Spellings = Callable[[str], Collection[tuple[int, ...]]]
"""Returns the token sequences of each spelling of a phrase; raises ValueError without any."""

BONUS = 3.0
"""Bonus in nats of each token after the first, for a hotword of weight 1."""
FIRST_SHARE = 0.5
"""Fraction of the bonus for the first token, after which greedy search cannot backtrack. Of the
tested pairs with whisper-tiny.en, this one had the fewest errors."""

# Number of cached lists, for recordings transcribed in parallel.
_LISTS_KEPT = 64


def forms(phrase: str) -> tuple[str, ...]:
    """Return a phrase as given, in lower case and capitalized."""
    return tuple(dict.fromkeys((phrase, phrase.lower(), phrase[:1].upper() + phrase[1:])))


class HotwordTries:
    """Builds the automata of hotword lists and caches the most recent ones."""

    def __init__(self, spellings: Spellings) -> None:
        self._spellings = spellings
        self._latest = lru_cache(maxsize=_LISTS_KEPT)(self._built)

    def of(self, hotwords: tuple[Hotword, ...]) -> PhraseTrie | None:
        """Return the automaton; None without hotwords.

        Raises:
            ItemError: a phrase of this recording cannot be spelled; those of the settings were
                checked before.
        """
        try:
            return self._latest(hotwords) if hotwords else None
        except ValueError as error:
            raise ItemError(f"reading hotwords: {error}", kind="bad_hotwords") from error

    def _built(self, hotwords: tuple[Hotword, ...]) -> PhraseTrie:
        return PhraseTrie.of(
            (
                (tokens, BONUS * hotword.weight)
                for hotword in hotwords
                for tokens in self._spellings(hotword.phrase)
            ),
            first_share=FIRST_SHARE,
        )


def as_prompt(hotwords: Sequence[Hotword] | None) -> str | None:
    """Return the prompt text that lists the hotwords, ignoring their weights."""
    return ", ".join(hotword.phrase for hotword in hotwords) if hotwords else None


def check_hotwords(hotwords: Sequence[Hotword] | None, spellings: Spellings) -> None:
    """Raise `ConfigError`, naming the key, for a phrase that a checkpoint cannot spell."""
    for hotword in hotwords or ():
        try:
            spellings(hotword.phrase)
        except ValueError as error:
            raise ConfigError(f"decoding.hotwords: {error}") from error
