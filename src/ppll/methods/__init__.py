"""The zoo of local learning: one file a method, one contract for all."""

from __future__ import annotations

from ppll.methods.auglocal import AugLocal
from ppll.methods.backprop import Backprop
from ppll.methods.base import BlockSite, Lesson, LocalLoss, Method, Paper, TaskLoss
from ppll.methods.contsup import ContSup
from ppll.methods.dgl import DGL
from ppll.methods.greedy import Greedy
from ppll.methods.heads import HeadMethod
from ppll.methods.infopro import InfoPro
from ppll.methods.lopt import LoPT
from ppll.methods.man import MAN, MANPlusPlus
from ppll.methods.predsim import PredSim
from ppll.methods.scpl import SCPL
from ppll.methods.sedona import Sedona
from ppll.methods.sgr import SGR
from ppll.methods.solo import SOLO
from ppll.methods.zerolock import ZeroLock
from ppll.registry import Registry

__all__ = [
    "BlockSite",
    "HeadMethod",
    "Lesson",
    "LocalLoss",
    "Method",
    "Paper",
    "TaskLoss",
    "methods",
]

methods: Registry[Method] = Registry("method", "method")
methods.register("backprop", "end-to-end backpropagation, the control: one block")(Backprop)
methods.register("greedy", "a pooled linear classifier behind every block")(Greedy)
methods.register("dgl", "a small pooled network (MLP-SR) behind every block")(DGL)
methods.register("man", "a layer like the next block's first, learned and followed")(MAN)
methods.register("manpp", "man with a learned scale between the two")(MANPlusPlus)
methods.register("auglocal", "layers like later ones of the network, picked evenly")(AugLocal)
methods.register("sgr", "a head; gradients of neighbouring blocks are reconciled")(SGR)
methods.register("lopt", "a decoder that finds the block's own input again")(LoPT)
methods.register("zerolock", "a head, drawn towards the prediction of the block before")(ZeroLock)
methods.register("predsim", "a pooled head, and similarities like those of the classes")(PredSim)
methods.register("infopro", "a head or a contrast, and the image found again")(InfoPro)
methods.register("sedona", "light convolutions of a chosen depth behind every block")(Sedona)
methods.register("contsup", "a head, and context from the image or the input before")(ContSup)
methods.register("solo", "an adapter, and the last layer of the network, read-only")(SOLO)
methods.register("scpl", "a contrast of the classes; only the last block predicts")(SCPL)
