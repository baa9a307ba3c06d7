"""Arrays that were given from Python, as a run keeps them, and how it knows them again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ppll.data.dataset import Dataset
from ppll.data_facts import DataFacts
from ppll.errors import DataError

__all__ = ["digest_of", "read_kept"]


def digest_of(data: Dataset) -> str:
    """SHA-256 of all samples, labels and groups with their types and shapes, and what normalises
    them."""
    facts = [data.num_classes, data.mean, data.std, data.num_tokens]
    digest = hashlib.sha256(f"{json.dumps(facts)}\n".encode())
    for part in (data.train, data.test):
        for tensor in (part.inputs, part.targets, part.groups):
            if tensor is None:
                digest.update(b"none\n")
                continue
            digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def read_kept(path: Path, facts: DataFacts | None) -> Dataset:
    """The arrays in a run's folder.

    Args:
        path: The file.
        facts: What the run knows of them; folders of older versions know no digest. None for
            arrays that may be others.

    Raises:
        DataError: The file cannot be read, or does not hold what the run was given.
    """
    data = Dataset.load(path)
    if facts is None or facts.digest in (None, digest_of(data)):
        return data
    raise DataError(
        f"{path} does not hold the arrays that the run was given (their SHA-256 is in data.json): "
        f"it is damaged, or of another run. Put it back from a copy, give the run the same arrays "
        f"again (data=... in Python), or go on with these: --allow-change data."
    )
