"""A channel between hosts: ``torch.distributed`` point to point, one group for each directed edge.

::

    sender                                            receiver
      copy the tensors into a slot
      header                        ────── gloo ──────▶ check it
      the slot's bytes              ── gloo or NCCL ──▶ receive
      may send again                ◀───── gloo ─────── release: one byte, a credit

Both ends have ``capacity`` slots, so the sender copies once and goes on while the network works.
Where both compute on GPUs the slots lie in their memory and NCCL takes the bytes; headers, credits
and the news that somebody is gone are always gloo's. A message is sent only when there is a credit,
so every send finds a slot to go to. Marks without tensors are a header alone. What is larger than
announced goes through the host's memory, and is received when its header has come.

Whoever closes says so, and the other answers, so that nothing that was sent is lost when a
connection ends.
"""

from __future__ import annotations

from ppll.channels.group_receive import GroupReceiveEnd
from ppll.channels.group_send import GroupSendEnd

__all__ = ["GroupReceiveEnd", "GroupSendEnd"]
