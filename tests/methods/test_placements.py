"""The methods that send more than features, under any interleaving, and on from a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from torch import nn

import ppll
from ppll.config import Recipe
from ppll.errors import ModelError, WorkerError
from ppll.job import DataFacts, draw_blueprint
from ppll.methods import methods
from ppll.models.network import Network
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.interleaving import digest, small_recipe, train_interleaved
from tests.thinning import slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]
METHODS = ["man", "manpp", "zerolock", "sgr", "contsup", "infopro"]
SETTINGS = {"lopt": ("method.weight=1",)}
"""What a method needs to go through the recipe of the faults without an infinite loss."""


@functools.cache
def sequential_digest(network: str, method: str) -> str:
    return digest(train_interleaved(small_recipe(network, method), num_stages=1))


@hypothesis.settings(max_examples=5, deadline=None, derandomize=True)
@hypothesis.given(
    method=st.sampled_from(METHODS),
    network=st.sampled_from(["resnet", "vit"]),
    num_stages=st.sampled_from([2, 3, 4]),
    capacity=st.sampled_from([1, 2, 8]),
    random=st.randoms(use_true_random=False),
)
def test_no_interleaving_changes_a_bit(method, network, num_stages, capacity, random) -> None:
    blocks = train_interleaved(
        small_recipe(network, method), num_stages, capacity=capacity, choose=random.randrange
    )
    assert digest(blocks) == sequential_digest(network, method)


@pytest.mark.parametrize("method", slow_but(["sgr"], METHODS))
@pytest.mark.parametrize("choose", [lambda num_able: 0, lambda num_able: num_able - 1])
def test_neither_the_first_nor_the_last_is_favoured(method: str, choose) -> None:
    """One of both is as far ahead as it can be."""
    blocks = train_interleaved(small_recipe("resnet", method), 4, capacity=1, choose=choose)
    assert digest(blocks) == sequential_digest("resnet", method)


slow = pytest.mark.slow
BREAK_IN_ONE = ["infopro"]
BREAK_IN_FOUR = ["sgr"]
VARIANTS = [
    ("man", ("method.lag=5",)),
    pytest.param("sgr", ("train.accumulate=2",), marks=slow),
    pytest.param("man", ("method.lag=1",), marks=slow),
    pytest.param("contsup", ("method.context=R1",), marks=slow),
    pytest.param("contsup", ("method.context=R1E", "method.auxiliary=auglocal"), marks=slow),
    pytest.param("infopro", ("method.objective=contrast",), marks=slow),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], str]:
    """What a recipe comes to on one stage; asked for again it is not trained again."""
    hashes: dict[str, str] = {}

    def weights_sha256(base: Recipe) -> str:
        key = base.to_toml()
        if key not in hashes:
            out = tmp_path_factory.mktemp("unbroken") / "run"
            hashes[key] = ppll.Trainer(base, out=out).fit().weights_sha256
        return hashes[key]

    return weights_sha256


# By default some methods break here, others on four processes below.
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *(
            pytest.param(name, SETTINGS.get(name, ()), marks=[] if name in BREAK_IN_ONE else slow)
            for name in LOCAL
        ),
        *VARIANTS,
    ],
)
def test_a_run_goes_on_to_the_same_bits(
    method: str,
    settings: tuple[str, ...],
    unbroken: Callable[[Recipe], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a lag of five, copies from before the checkpoint of step 6 are used after it."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    base = recipe().with_settings([f"method.name={method}", *settings])
    with injected(Fault(0, 8)), pytest.raises(WorkerError):
        ppll.Trainer(base, out=tmp_path / "broken").fit()
    resumed = ppll.Trainer(base, out=tmp_path / "broken", resume=True).fit()
    assert resumed.weights_sha256 == unbroken(base)


@pytest.mark.parametrize(
    ("cut", "layer"), [(1, r"layer '1' \(ReLU\)"), (4, r"layer '4' \(Flatten\)")]
)
def test_a_layer_without_parameters_cannot_be_followed(cut: int, layer: str) -> None:
    network = Network.from_modules(
        [
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 3),
        ]
    )
    base = small_recipe(method="man", split_blocks=2).with_settings([f"split.cuts=[{cut}]"])
    blueprint = draw_blueprint(base, DataFacts((1, 8, 8), 3, 3), network)
    with pytest.raises(ModelError, match=f"{layer} has none: cut before a layer that has some"):
        blueprint.outline(0)


@pytest.mark.processes
@pytest.mark.parametrize("method", slow_but(BREAK_IN_FOUR, LOCAL))
def test_four_processes_break_and_one_goes_on(
    method: str,
    unbroken: Callable[[Recipe], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What travels does so between processes, too, and checkpoints know nothing of placement."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    base = recipe().with_settings([f"method.name={method}", *SETTINGS.get(method, ())])
    four = base.with_settings(["runtime.stages=4"])
    with injected(Fault(2, 8)), pytest.raises(WorkerError):
        ppll.Trainer(four, out=tmp_path / "broken").fit()
    resumed = ppll.Trainer(base, out=tmp_path / "broken", resume=True).fit()
    assert resumed.weights_sha256 == unbroken(base)
