"""Make torchvision's Python part importable beside a torch that was built for processors alone.

Its compiled operators do not load there, and the import fails unless the two that it looks for are
declared. Python imports this file at the start of every process whose path has its folder.
"""

from __future__ import annotations

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SIGNATURE)
