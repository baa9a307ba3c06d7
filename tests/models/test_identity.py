"""What layers are: alike in copies and processes, and no two that compute something else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ppll.models import models
from ppll.models.identity import describe_layers
from ppll.models.network import Network
from ppll.models.splitting import split


class Scaled(nn.Module):
    def __init__(self, scale: float, heads: int, function: Callable[..., object]) -> None:
        super().__init__()
        self.scale, self.heads, self.function, self.other = scale, heads, function, object()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.scale


class Talking(nn.Module):
    """Says where it lies in memory."""

    def extra_repr(self) -> str:
        return f"{object()!r}\nand more"


class Traced(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self._factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self._factor


def described(*modules: nn.Module) -> dict[str, str]:
    return describe_layers(Network.from_modules(modules))


def test_what_computes_something_else_is_described_otherwise() -> None:
    def made(scale: float = 0.5, heads: int = 2, function: object = functional.gelu) -> nn.Module:
        return Scaled(scale, heads, function)  # type: ignore[arg-type]

    others = [nn.Tanh(), nn.ReLU(), nn.Dropout(0.1), nn.Dropout(0.2), nn.Linear(8, 8)]
    others += [nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3), nn.BatchNorm1d(8, eps=0.1)]
    others += [nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 4)]
    others += [made(), made(scale=0.25), made(heads=4), made(function=functional.relu)]
    others += [nn.TransformerEncoderLayer(8, 2), nn.TransformerEncoderLayer(8, 2, norm_first=True)]
    assert len({described(module)["0"] for module in others}) == len(others)


def test_copies_without_values_and_addresses_are_alike() -> None:
    module = nn.Sequential(Talking(), Scaled(1 / 3, 2, functional.gelu), nn.Linear(2, 2))
    bare = copy.deepcopy(module).to("meta").eval()
    first, second = (describe_layers(Network.from_modules(m)) for m in (module, bare))
    assert first == second
    assert described(Talking()) == {"0": "Talking(<object object> and more)"}


def test_what_lies_between_layers_counts() -> None:
    sample = torch.ones(2, 3)
    once, again, other = (describe_layers(split(Traced(f), sample)) for f in (2, 2, 3))
    assert once == again
    assert [name for name in once if once[name] != other[name]] == ["head"]


def test_long_layers_are_digests() -> None:
    network = models.build("resnet", {"depth": 14}, (3, 8, 8), 10)
    lines = describe_layers(network)
    assert list(lines) == [layer.name for layer in network.layers]
    assert not any("sha256" in line for line in lines.values())
    long = [*[nn.Linear(2, 2)] * 90, nn.Tanh()]
    one, other = described(nn.Sequential(*long)), described(nn.Sequential(*long[:-1], nn.ReLU()))
    assert "sha256" in one["0"]
    assert one != other
