"""Training a Speech2Text on spoken digits: a plain loop.

In: utterances and a tokenizer. Out: a network that knows them. Real training has more to it; this
shows that the network, its loss and its gradients are enough to learn.

A second loss on the encoder asks which digit is heard where: attention then finds the words in
hundreds of steps instead of thousands. What it needs beside the network is thrown away.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.families.pretrained import IGNORED_LABEL
from corpus_asr.families.speech2text.tokenizer import Speech2TextTokenizer
from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration
from tests.support.digits import MEL_BINS, WORDS, Features, Utterance, Utterances

LONGEST = 6

_PAUSE = len(WORDS)
# Highest learning rates: an encoder's blocks know sounds already, what is around them a little.
_BLOCKS, _AROUND, _NEW = 1e-4, 3e-4, 1e-3


def padded(rows: Sequence[Features]) -> tuple[Tensor, Tensor]:
    """Return features of one length, and a mask of their frames."""
    longest = max(len(row) for row in rows)
    features = np.zeros((len(rows), longest, MEL_BINS), np.float32)
    mask = np.zeros((len(rows), longest), np.int64)
    for at, row in enumerate(rows):
        features[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return torch.from_numpy(features), torch.from_numpy(mask)


def _most_words(done: float) -> int:
    """Return how long utterances may be: two words at first, all lengths from 40 % on."""
    return min(LONGEST, 2 + math.floor(done / 0.4 * (LONGEST - 1)))


def _digits_heard(
    utterances: Sequence[Utterance], positions: int, *, frames_per_position: int
) -> Tensor:
    """Return the digit that each position is part of, `_PAUSE` between them, -100 at the end."""
    rows = np.full((len(utterances), positions), IGNORED_LABEL, np.int64)
    for row, one in zip(rows, utterances, strict=True):
        heard = one.heard[::frames_per_position]
        row[: len(heard)] = np.where(heard < 0, _PAUSE, heard)
    return torch.from_numpy(rows)


def train(
    model: Speech2TextForConditionalGeneration,
    utterances: Utterances,
    tokenizer: Speech2TextTokenizer,
    *,
    steps: int,
    rows: int = 16,
    report: Callable[[int, float, float], None] | None = None,
) -> None:
    """Train in place.

    Args:
        model: what learns; its encoder knows sounds already.
        utterances: what from; single words first, longer ones little by little.
        tokenizer: text to labels, the end token included.
        steps: batches.
        rows: utterances of a batch.
        report: is told each step's number and its two losses.
    """
    encoder, config = model.model.encoder, model.config
    telling = nn.Linear(config.d_model, _PAUSE + 1)
    groups = {
        _BLOCKS: [*encoder.layers.parameters()],
        _AROUND: [*encoder.conv.parameters(), *encoder.layer_norm.parameters()],
        _NEW: [*model.model.decoder.parameters(), *telling.parameters()],
    }
    optimiser = torch.optim.AdamW(
        [{"params": group} for group in groups.values()], betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=list(groups), total_steps=steps, pct_start=0.1
    )
    draw = np.random.default_rng(0)
    model.train()
    encoder.eval()  # what it knows would suffer from units that drop out
    for step in range(steps):
        most = _most_words(step / steps)
        picked = [utterances.one(int(draw.integers(1, most + 1))) for _ in range(rows)]
        features, mask = padded([one.features for one in picked])
        texts = tokenizer([one.text for one in picked], padding=True, return_tensors="pt")
        labels = texts.input_ids.masked_fill(texts.attention_mask == 0, IGNORED_LABEL)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(features, attention_mask=mask, labels=labels)
            told = telling(output.encoder_last_hidden_state)
        where = _digits_heard(picked, told.shape[1], frames_per_position=2**config.num_conv_layers)
        loss = _smoothed_loss(output.logits, labels)
        heard = _smoothed_loss(told, where)
        if report is not None:
            report(step, loss.item(), heard.item())
        loss = loss + heard
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval()


def _smoothed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=0.1)
