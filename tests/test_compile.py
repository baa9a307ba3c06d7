"""Compiled blocks: the same bits on any placement, whatever shapes came before; who is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.baselines.training import RecipeWork
from ppll.blocks.block import Block
from ppll.blocks.compiling import compiled, compiler_settings, missing_compiler
from ppll.errors import RecipeError
from ppll.job import DataFacts, draw_blueprint
from ppll.message import Kind
from ppll.models.network import Network
from ppll.planning.measuring import measure
from tests.faults import recipe
from tests.interleaving import (
    NUM_CLASSES,
    MadeUpBatches,
    built_blocks,
    digest,
    interleave,
    make_workers,
)
from tests.structures import MODELS, blueprint_of, train_interleaved
from tests.test_block import batch, learn, make_blocks

pytestmark = [
    # Torch's compiler warns of its own ways.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]

needs_compiler = pytest.mark.skipif(
    missing_compiler() is not None, reason=f"no C++ compiler {missing_compiler()}"
)
patient = pytest.mark.timeout(600)
"""Torch calls the compiler some ten times, and a few seconds each."""


@pytest.fixture
def settings() -> Iterator[None]:
    torch._dynamo.reset()
    with compiler_settings():
        yield
    torch._dynamo.reset()


def modules() -> list[nn.Module]:
    hidden = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.5))
    return [nn.Flatten(), hidden, nn.Linear(8, NUM_CLASSES)]


def trained(num_stages: int, **train: object) -> list[Block]:
    """Two compiled blocks after four batches of two sizes, and an evaluation."""
    tree = {
        "data": {"batch_size": 6},
        "split": {"blocks": 2, "cuts": [2]},
        "method": {"name": "greedy"},
        "train": {"epochs": 2, "compile": True, **train},
    }
    batches = MadeUpBatches((6, 3))
    facts = DataFacts((1, 8, 8), NUM_CLASSES, batches.steps_per_epoch)
    blueprint = draw_blueprint(ppll.Recipe.from_dict(tree), facts, Network.from_modules(modules()))
    blocks = built_blocks(blueprint)
    interleave(make_workers(blueprint, blocks, batches, num_stages, 2), lambda num_able: 0)
    return blocks


@pytest.mark.slow
@patient
@needs_compiler
@pytest.mark.usefixtures("settings")
def test_any_placement_gives_the_same_bits() -> None:
    together = digest(trained(1))
    torch._dynamo.reset()
    assert digest(trained(2)) == together
    for compiled_block, plain in zip(trained(2), trained(1, compile=False), strict=True):
        pairs = zip(
            compiled_block.modules.named_tensors(), plain.modules.named_tensors(), strict=True
        )
        for (_, a), (_, b) in pairs:
            # Dropout draws other masks, so that only the size of things is alike.
            assert a.shape == b.shape
            assert torch.isfinite(a).all()


@pytest.mark.slow
@patient
@needs_compiler
@pytest.mark.usefixtures("settings")
def test_without_dropout_it_is_nearly_what_is_not_compiled() -> None:
    found = []
    for compiles in (True, False):
        first, _ = make_blocks(compile=compiles)
        for step in (1, 2):
            learn(first, batch(step=step))
        found.append(torch.cat([p.flatten() for _, p in first.modules.named_parameters()]))
    torch.testing.assert_close(*found)


@patient
@needs_compiler
@pytest.mark.usefixtures("settings")
def test_a_shape_has_the_same_code_whatever_came_before() -> None:
    """Torch by itself would compile the second shape for any size."""
    outputs = []
    for order in ((6, 3, 4), (4, 3, 6)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        function = compiled(lambda x: torch.softmax(x, 1).sum(0))
        values = torch.linspace(-1, 1, 12).reshape(6, 2)
        outputs.append({n: function(values[:n]) for n in order})
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert all(torch.equal(outputs[0][n], outputs[1][n]) for n in (3, 4, 6))


@needs_compiler
@pytest.mark.usefixtures("settings")
def test_evaluation_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = make_blocks(compile=True)

    def refuse(*_: object) -> None:
        raise AssertionError("compiled code ran")

    monkeypatch.setattr(first, "_compute", refuse)
    first.forward(batch(Kind.EVALUATE))
    first.evaluate()
    assert first.counts.take().samples == 5
    with pytest.raises(AssertionError, match="compiled code ran"):
        first.forward(batch())


@pytest.mark.slow
@patient
@needs_compiler
@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("name", MODELS)
def test_layers_that_hand_on_several_tensors_are_compiled(name: str) -> None:
    found = []
    for compiles, num_stages in ((True, 1), (True, 2), (False, 1)):
        torch._dynamo.reset()
        # AdamW would make steps of the noise that is the gradient of a bias before batch norm.
        changes = {"optimizer": {"name": "sgd"}, "train": {"compile": compiles}}
        model = without_dropout(MODELS[name]())
        blueprint = blueprint_of(model, split={"blocks": 2}, **changes)
        found.append(train_interleaved(blueprint, num_stages))
    assert digest(found[0]) == digest(found[1])
    for compiled_block, plain in zip(found[0], found[2], strict=True):
        others = dict(plain.modules.named_tensors())
        for name_of, tensor in compiled_block.modules.named_tensors():
            torch.testing.assert_close(tensor, others[name_of], rtol=1e-4, atol=1e-5)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_settings_hold_inside_only() -> None:
    import torch._dynamo.config
    import torch._inductor.config

    before = torch._dynamo.config.recompile_limit, torch._inductor.config.compile_threads
    with compiler_settings():
        assert torch._dynamo.config.recompile_limit == 1024
        assert torch._dynamo.config.fail_on_recompile_limit_hit
        assert torch._inductor.config.compile_threads == 1
    after = torch._dynamo.config.recompile_limit, torch._inductor.config.compile_threads
    assert after == before


@patient
@needs_compiler
@pytest.mark.processes
@pytest.mark.slow
def test_processes_and_one_process_end_alike(tmp_path: Path) -> None:
    settings = ["train.compile=true", "train.epochs=1", "runtime.stall_timeout_s=300"]
    settings += ["data.batch_size=19", "method.name=greedy", "split.blocks=2", "split.cuts=[2]"]
    hashes = []
    for stages in (1, 2):
        base = recipe(stages=stages).with_settings(settings)
        torch.manual_seed(0)  # The network starts from the values that it has.
        trainer = ppll.Trainer(base, model=nn.Sequential(*modules()), out=tmp_path / str(stages))
        hashes.append(trainer.fit().weights_sha256)
    assert hashes[0] == hashes[1]


def test_a_method_that_differentiates_a_gradient_is_refused(tmp_path: Path) -> None:
    base = recipe().with_settings(["train.compile=true", "method.name=sgr"])
    with pytest.raises(RecipeError, match=r"'sgr' differentiates a gradient.*compile = false"):
        ppll.Trainer(base, out=tmp_path / "run")


def test_a_machine_without_a_compiler_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    base = recipe().with_settings(["train.compile=true"])
    with pytest.raises(RecipeError, match=r"C\+\+ compiler, but 'no-such-compiler' is not there"):
        ppll.Trainer(base, out=tmp_path / "run")
    ppll.Trainer(recipe(), out=tmp_path / "run")  # nothing is looked for where nothing compiles


def test_costs_and_rivals_refuse_it() -> None:
    base = recipe().with_settings(["train.compile=true"])
    with pytest.raises(RecipeError, match=r"train\.compile: layers are measured one by one"):
        measure(base)
    with pytest.raises(RecipeError, match=r"train\.compile: rivals run uncompiled"):
        RecipeWork(base).prepared(layout=None)  # type: ignore[arg-type]  # not looked at before
