"""The rival that is plain backpropagation learns as PPLL's own control does, batch by batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.baselines.curves import NUM_BATCHES, curve_recipe, losses_of_control, rival

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("nothing_left_behind")]


@pytest.mark.parametrize("model", [pytest.param("vit", marks=pytest.mark.slow), "resnet"])
def test_backprop_learns_as_the_control_does(model: str, tmp_path: Path) -> None:
    recipe = curve_recipe(model, "cpu")
    found = rival(recipe).losses
    assert len(found) == NUM_BATCHES
    assert found == pytest.approx(losses_of_control(recipe, tmp_path / "run"), rel=1e-6)
