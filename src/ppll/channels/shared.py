"""A channel between processes of one host: tensors in shared memory, headers over a Unix socket.

::

    sender                                                   receiver
      copy the tensors ──▶ │ slot 0 │ slot 1 │ slot 2 │ ──▶ views, no copy
      send a header    ─────────────── socket ─────────────▶ check it, receive
      may send again   ◀────────────── socket ────────────── release: one byte, a credit

The receiver owns the slots and tells the sender how to reach them when it accepts: they lie in the
host's memory, or on the receiver's GPU (``device_slots``) where it computes on one. Message n
lies in slot n modulo capacity; a mark without tensors takes a slot as well, so the credits alone
say what is free. A message that is larger than announced travels in memory of its own, whose
descriptor goes with the header. A sender that cannot reach a GPU's slots sends others, in the
host's memory, with its first message. When a process dies, the kernel closes its socket, and the
other end knows at once.

No process waits for another if each listens first, then connects, then accepts::

    receive_end = SharedReceiveEnd.listen(path, layout, capacity, secret)
    send_end = SharedSendEnd.connect(next_path, secret, timeout_s)
    receive_end.accept(timeout_s)
"""

from ppll.channels.greeting import MAX_CAPACITY
from ppll.channels.shared_receive import SharedReceiveEnd
from ppll.channels.shared_send import SharedSendEnd

__all__ = ["MAX_CAPACITY", "SharedReceiveEnd", "SharedSendEnd"]
