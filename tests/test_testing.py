"""What we give to people who test what is theirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ppll.config import Recipe
from ppll.testing import check_placements
from tests.faults import recipe
from tests.test_resuming import OWN, own_data, own_model

MODULE = """
from ppll.methods import HeadMethod, LocalLoss

class Counting(HeadMethod):
    default_auxiliary = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def local_loss(self, auxiliary, lesson, task_loss):
        loss = super().local_loss(auxiliary, lesson, task_loss)
        self.seen.append(len(lesson.targets))
        return LocalLoss(loss.value * len(self.seen), loss.logits)
"""

pytestmark = pytest.mark.processes


def test_a_method_with_a_state_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that change are refused before a run; what lies in lists is not looked at there."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "counting_method.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    counting = recipe().with_settings(["method.name=counting_method:Counting"])
    with pytest.raises(AssertionError, match=r"changes what is trained; .* 1: \w{12}, 2: \w{12}\."):
        check_placements(counting, stages=(1, 2), max_steps=2)
    sys.modules.pop("counting_method")


def test_ones_own_network_is_checked_and_stays_as_it_is() -> None:
    model = own_model()
    before = [parameter.clone() for parameter in model.parameters()]
    checked = Recipe.from_dict(OWN)
    check_placements(checked, model=model, data=own_data(), stages=(1, 2))
    assert all(map(torch.equal, before, model.parameters()))
