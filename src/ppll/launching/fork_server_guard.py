"""Imported by the fork server before anything else: it must neither outlive its launcher nor end
before it, nor look for garbage in what it imports.

The fork server looks for its launcher's end only when it has imported everything, which takes
seconds. Linux ends it at once where it asks for that; elsewhere it ends when it has looked.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from functools import partial
from typing import Final

from ppll.fork_server import LAUNCHER_VARIABLE, SIGNALS

__all__: list[str] = []

_PR_SET_PDEATHSIG: Final = 1

# The launcher blocked them for this process to be born.
for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
# Other processes that are forked from here than ranks may be meant to end by it.
os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))

# What is imported stays. To look for garbage in it takes a fifth of the time that the imports take,
# and in ranks the memory that they share with this process.
gc.disable()
os.register_at_fork(before=gc.freeze, after_in_child=gc.enable)

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is not None and launcher != str(os.getppid()):  # It was gone too soon.
        sys.exit(1)
