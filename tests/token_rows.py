"""Rows of tokens with one class each, and a small network that reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppll.data import Dataset
from ppll.data_facts import DataFacts
from ppll.message import FEATURES, TARGETS
from tests.interleaving import NUM_CLASSES, MadeUpBatches

NUM_TOKENS, LENGTH = 20, 7


class Mix(nn.Module):
    """Rows (N, T, D) and what a small MLP makes of each and of their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, rows: Tensor) -> Tensor:
        normed = self.norm(rows)
        mixed = normed + normed.mean(1, keepdim=True)
        added: Tensor = self.contract(nn.functional.gelu(self.expand(mixed)))
        return rows + added


class End(nn.Module):
    """Rows (N, T, D) to logits (N, classes)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.linear(rows.mean(1))
        return logits


def classifier(
    width: int = 8, depth: int = 4, num_tokens: int = NUM_TOKENS, num_classes: int = NUM_CLASSES
) -> list[nn.Module]:
    """An embedding, ``depth`` layers, and the end: a row that is cut between any two."""
    layers = [Mix(width) for _ in range(depth)]
    return [nn.Embedding(num_tokens, width), *layers, End(width, num_classes)]


def rows(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens (N, T) and classes (N): half of a row's tokens leave the same rest as its class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(NUM_CLASSES, (number,), generator=generator)
    tokens = torch.randint(NUM_TOKENS - NUM_CLASSES, (number, LENGTH), generator=generator)
    telling = tokens - tokens % NUM_CLASSES + classes[:, None]
    is_telling = torch.rand(tokens.shape, generator=generator) < 0.5
    return torch.where(is_telling, telling, tokens), classes


def dataset(dtype: torch.dtype = torch.int64) -> Dataset:
    """24 rows to learn from, 10 to test with."""
    (inputs, targets), (test, labels) = rows(24), rows(10, seed=1)
    return Dataset.from_arrays(
        train=(inputs.to(dtype), targets), test=(test.to(dtype), labels), num_tokens=NUM_TOKENS
    )


class MadeUpRows(MadeUpBatches):
    """The same in batches; the last one is short."""

    def __init__(self) -> None:
        inputs, targets = rows(15)
        parts = zip(inputs.split(6), targets.split(6), strict=True)
        self._batches = [{FEATURES: part.clone(), TARGETS: of.clone()} for part, of in parts]

    @property
    def facts(self) -> DataFacts:
        return DataFacts((LENGTH,), NUM_CLASSES, self.steps_per_epoch, num_tokens=NUM_TOKENS)
