"""A block whose replicas share its parameters, gradients and optimizer state (PyTorch's FSDP2).

Every replica keeps equal shares of a block's parameters, cut along their first dimension, with
their gradients, optimizer state and averages. ``torch.distributed.fsdp.fully_shard`` gathers a
layer's parameters before its forward and its backward pass, frees them after each, and hands every
replica its share of the gradients' sums. It does so over the channels of the replicas
(``replicas/line.py``), not over a process group of torch: sums have one order, no port is opened,
and a replica that is gone is seen at once. What is computed has the same bits as without shares.

Where all of a parameter is asked for (a checkpoint, a digest, an evaluation, the norm of a
gradient) every replica takes part at the same place in the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor

from ppll.auxiliary.together import HeadAndMore
from ppll.blocks.averages import Averages
from ppll.blocks.modules import BlockModules
from ppll.models.names import qualified
from ppll.replicas.adding import Adder
from ppll.replicas.exchange import Exchange
from ppll.replicas.same_way import SameWay

__all__ = ["PartsLine", "Replicas", "Shares", "replica_mesh"]

_BACKEND: Final = "ppll"


class PartsLine(Protocol):
    """How replicas reach each other; see ``replicas.Line``."""

    def gather(self, parts: Sequence[Tensor], own: int, what: str) -> None:
        """Fill in what the other replicas have."""
        ...

    def scatter(self, parts: Sequence[Tensor], own: int, what: str) -> None:
        """Make this replica's part the sum of all replicas'."""
        ...


@dataclass(frozen=True)
class Replicas:
    """The replicas of this process's stage.

    Attributes:
        line: Reaches the others.
        adder: Adds up over the same line; nothing of it is under way when parts travel.
        mesh: All of them, and which of them this is.
    """

    line: PartsLine
    adder: Adder
    mesh: DeviceMesh

    @property
    def index(self) -> int:
        """Position of this replica."""
        return self.mesh.get_local_rank()

    def parts(self, row: Tensor) -> list[Tensor]:
        """One of each replica, of a row whose length they divide."""
        return list(row.view(self.mesh.size(), -1))

    def gather(self, row: Tensor, name: str) -> None:
        """Fill in the others' parts of a row."""
        with self.adder.waiting():
            self.line.gather(self.parts(row), self.index, f"gather {name}")

    def scatter(self, row: Tensor, name: str) -> None:
        """Make this replica's part of a row the sum of all replicas'."""
        with self.adder.waiting():
            self.line.scatter(self.parts(row), self.index, f"scatter {name}")


class Shares(Exchange):
    """One replica's shares of a block.

    Args:
        modules: What the block computes with, on the CPU; shares take the parameters' places.
        replicas: All of the stage.
        may_leave_out: Whether a batch with a loss that is not finite is left out.
    """

    def __init__(self, modules: BlockModules, replicas: Replicas, *, may_leave_out: bool) -> None:
        self._replicas = replicas
        self._index, self._num = replicas.index, replicas.mesh.size()
        self._may_leave_out = may_leave_out
        self._units = [self._shared(name, unit) for name, unit in _units(modules)]
        share_comm_ctx(self._units)
        self._sharded = {n: p for n, p in modules.named_parameters() if isinstance(p, DTensor)}
        with torch.no_grad():
            own = {n: nn.Parameter(_local(p), p.requires_grad) for n, p in self._sharded.items()}
        self._kept = {**dict(modules.named_parameters()), **own}
        super().__init__(modules, replicas.adder, is_first=self._index == 0, but_for=own)

    def _shared(self, name: str, unit: nn.Module) -> FSDPModule:
        """A unit whose parameters are shares from now on."""
        way = SameWay(unit)

        def note_found() -> None:
            self._found.update(self._kept[qualified(name, own)] for own in way.take_found())

        gather = _Gather(self._replicas, name)
        scatter = _Scatter(self._replicas, name, note_found)
        return _sharded(unit, self._replicas.mesh, gather, scatter)

    def kept(self, modules: BlockModules) -> dict[str, nn.Parameter]:  # noqa: ARG002
        """What the optimizer updates, by name: the shares, and what cannot be cut."""
        return self._kept

    def load(self, modules: BlockModules, tensors: Mapping[str, Tensor]) -> None:
        """Take this replica's shares over of saved parameters, and saved buffers."""
        modules.check(tensors)
        own = self.own(tensors.items())
        with torch.no_grad():
            for name, tensor in modules.named_tensors():
                self._kept.get(name, tensor).copy_(own[name])

    def agree(self, *, leaves_out: bool) -> bool:
        """Whether any replica leaves the batch out: a backward pass is of all or of none."""
        if not self._may_leave_out:
            return leaves_out
        return bool(self._sums([torch.tensor([leaves_out])], "agree")[0])

    def begin(self) -> None:
        """The last backward pass of a batch begins: each layer's gradients are added up in it."""
        self._add_up_gradients(True)

    def gather(self, *, leaves_out: bool) -> bool:
        """A batch ends: gradients of shares go to where the optimizer looks for them."""
        self._add_up_gradients(False)
        with torch.no_grad():
            for name, parameter in self._sharded.items():
                gradient, parameter.grad = parameter.grad, None
                self._kept[name].grad = None if gradient is None else _local(gradient)
        return super().gather(leaves_out=leaves_out)

    def _add_up_gradients(self, does: bool) -> None:
        for unit in self._units:
            unit.set_requires_gradient_sync(does, recurse=False)

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """That of a whole gradient (scalar), with the bits that it has without shares."""
        whole = self.whole(gradients.items())
        norms = torch.stack([torch.linalg.vector_norm(gradient) for _, gradient in whole])
        norm: Tensor = torch.linalg.vector_norm(norms)
        return norm

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors with the shares of all replicas, who must ask for the same.

        Raises:
            ChannelClosed: A replica is gone.
        """
        for name, tensor in named:
            parameter = self._parameter_of(name, tensor)
            yield name, tensor if parameter is None else self._whole(name, tensor, parameter.shape)

    def own(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """This replica's shares of whole tensors."""
        return {
            name: tensor if self._parameter_of(name, tensor) is None else self._own(tensor)
            for name, tensor in named
        }

    @contextmanager
    def evaluated(self, averages: Averages | None) -> Iterator[None]:
        """An evaluation: the first replica, which alone is asked, holds whole parameters."""
        evaluates = self._index == 0
        with nullcontext() if averages is None else averages.copied_in_place():
            for unit in self._units:
                unit.set_reshard_after_forward(not evaluates, recurse=False)
                unit.unshard()
                if not evaluates:
                    unit.reshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()

    def _parameter_of(self, name: str, tensor: Tensor) -> Tensor | None:
        """The parameter that is cut as a tensor is, itself or what it goes with; none for others.

        What an optimizer has beside a parameter is of its shape, or a number.
        """
        owner = name if name in self._sharded else name.rpartition(".")[0]
        return self._sharded.get(owner) if tensor.ndim else None

    def _own(self, tensor: Tensor) -> Tensor:
        num_rows = -(-len(tensor) // self._num)
        return tensor[num_rows * self._index : num_rows * (self._index + 1)].clone()

    def _whole(self, name: str, own: Tensor, shape: torch.Size) -> Tensor:
        num_rows = -(-shape[0] // self._num)
        with torch.no_grad():
            own = _local(own)
            padded = own.new_zeros((self._num, num_rows, *shape[1:]))
            padded[self._index, : len(own)] = own
        self._replicas.gather(padded, name)
        return padded.view(-1, *shape[1:])[: shape[0]]


def _local(tensor: Tensor) -> Tensor:
    """This replica's share, where a tensor is one of torch's kind."""
    if not isinstance(tensor, DTensor):
        return tensor
    local: Tensor = tensor.to_local()
    return local


class _Gather:
    """How ``fully_shard`` gathers parameters: over the replicas' own channels."""

    def __init__(self, replicas: Replicas, name: str) -> None:
        self._replicas = replicas
        self._name = name

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, **_: Any) -> None:
        self._replicas.parts(output_tensor)[self._replicas.index].copy_(input_tensor)
        self._replicas.gather(output_tensor, self._name)


class _Scatter(_Gather):
    """How ``fully_shard`` adds up gradients; tells when it has taken them."""

    def __init__(self, replicas: Replicas, name: str, note_taken: Callable[[], None]) -> None:
        super().__init__(replicas, name)
        self._note_taken = note_taken

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, **_: Any) -> None:
        self._note_taken()
        self._replicas.scatter(input_tensor, self._name)
        output_tensor.copy_(self._replicas.parts(input_tensor)[self._replicas.index])


def _units(modules: BlockModules) -> Iterator[tuple[str, nn.Module]]:
    """What is called as a whole, and gathered as a whole, with the prefix of its names."""
    for name, module in modules.named():
        named = [*module.named_children()] if isinstance(module, HeadAndMore) else [("", module)]
        for inner, part in named:
            if any(p.ndim for p in part.parameters()):
                yield qualified(name, inner), part


def _sharded(unit: nn.Module, mesh: DeviceMesh, gather: _Gather, scatter: _Scatter) -> FSDPModule:
    """A layer whose parameters are shares from now on; numbers cannot be cut."""
    numbers = {p for p in unit.parameters() if not p.ndim}
    sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=numbers)
    sharded.set_requires_gradient_sync(False)
    comms: Any = sharded  # Torch asks for classes of its own, but uses what they have.
    comms.set_custom_all_gather(gather)
    comms.set_custom_reduce_scatter(scatter)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    # Nothing but itself is gathered ahead: what torch guesses depends on who evaluates.
    sharded.set_modules_to_backward_prefetch([sharded])
    return sharded


class _SilentGroup(distributed.ProcessGroup):
    """Says who the replicas are; nothing travels by it."""

    @property
    def group_name(self) -> Any:
        """What torch has registered it as."""
        return distributed.distributed_c10d._world.pg_names[self]


def _silent_group(_store: Any, rank: int, size: int, _timeout: Any) -> distributed.ProcessGroup:
    make: Any = _SilentGroup  # Torch's types know another way to make one.
    group: distributed.ProcessGroup = make(rank, size)
    return group


@contextmanager
def replica_mesh(index: int, num_replicas: int) -> Iterator[DeviceMesh]:
    """The replicas of this process's stage, as torch wants to know them.

    Args:
        index: Which of them this process is.
        num_replicas: All of them.
    """
    if _BACKEND not in distributed.Backend.backend_list:
        distributed.Backend.register_backend(_BACKEND, _silent_group, devices=["cpu"])
    distributed.init_process_group(_BACKEND, store=HashStore(), rank=index, world_size=num_replicas)
    try:
        assert distributed.group.WORLD is not None
        yield DeviceMesh.from_group(distributed.group.WORLD, "cpu")
    finally:
        distributed.destroy_process_group()
