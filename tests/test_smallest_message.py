"""Messages of one sample, where something cannot learn from them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

import ppll
from ppll.errors import DataError
from tests.faults import recipe


@pytest.mark.parametrize(
    ("method", "compares"),
    [
        ("scpl", True),
        ("predsim", True),
        ("{name='infopro',objective='contrast'}", True),
        ("{name='contsup',objective='contrast'}", True),
        ("greedy", False),
    ],
)
def test_messages_of_one_sample_teach_nothing_where_samples_are_compared(
    method: str, compares: bool
) -> None:
    key = "method" if method.startswith("{") else "method.name"
    base = recipe().with_settings([f"{key}={method}", "data.batch_size=4", "train.accumulate=4"])
    tree = base.model_dump(exclude_unset=True)
    tree["model"] = {"name": "vit", "patch_size": 4, "width": 16, "depth": 4, "heads": 2}
    refused = rf"one sample .*, which method '{base.method.name}', which compares samples, cannot"
    with pytest.raises(DataError, match=refused) if compares else nullcontext():
        ppll.Trainer(tree).check()
