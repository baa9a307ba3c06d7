"""Train a network and data of your own, each block in a process of its own.

Any row of modules that feed each other will do. The modules of a script are imported by the
processes, hence the last two lines.
"""

import torch
from torch import nn

import ppll


def rings(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (N, 2) on three rings, and which ring each is on (N)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (num,), generator=generator)
    angles = 6.2832 * torch.rand(num, generator=generator)
    radius = 1.0 + targets + 0.2 * torch.randn(num, generator=generator)
    return torch.stack([radius * angles.cos(), radius * angles.sin()], dim=1), targets


def main() -> None:
    layers = [
        nn.Sequential(nn.Linear(2, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
        nn.Linear(64, 3),
    ]
    data = ppll.Dataset.from_arrays(train=rings(2000, seed=1), test=rings(500, seed=2))
    recipe = {
        "data": {"batch_size": 50},
        "split": {"blocks": 2},
        "optimizer": {"name": "adamw", "lr": 0.005},
        "train": {"epochs": 5},
        "runtime": {"stages": 2},
    }
    result = ppll.Trainer(recipe, model=layers, data=data).fit()
    print(f"on {result.num_stages} stages: test accuracy {result.test_accuracy:.1%}")
    # The modules hold the trained values now.
    network = nn.Sequential(*layers)
    print(f"a point at radius 3 is on ring {network(torch.tensor([[0.0, 3.0]])).argmax().item()}")


if __name__ == "__main__":
    main()
