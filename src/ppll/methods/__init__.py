"""The zoo of local learning: one file a method, one contract for all."""

from __future__ import annotations

from ppll.methods.backprop import Backprop
from ppll.methods.base import BlockSite, LocalLoss, Method, Paper, TaskLoss
from ppll.methods.dgl import DGL
from ppll.methods.greedy import Greedy
from ppll.methods.heads import HeadMethod
from ppll.registry import Registry

__all__ = ["BlockSite", "HeadMethod", "LocalLoss", "Method", "Paper", "TaskLoss", "methods"]

methods: Registry[Method] = Registry("method", "method")
methods.register("backprop", "end-to-end backpropagation, the control: one block")(Backprop)
methods.register("greedy", "a pooled linear classifier behind every block")(Greedy)
methods.register("dgl", "a small pooled network (MLP-SR) behind every block")(DGL)
