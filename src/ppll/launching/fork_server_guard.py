"""Imported by the fork server before anything else: it must not outlive its launcher.

The fork server looks for its launcher's end only when it has imported everything, which takes
seconds. Linux ends it at once where it asks for that; elsewhere it ends when it has looked.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

from ppll.fork_server import LAUNCHER_VARIABLE

__all__: list[str] = []

_PR_SET_PDEATHSIG: Final = 1

# Ctrl-C is for the launcher, which blocked it for this process to be born.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is not None and launcher != str(os.getppid()):  # It was gone too soon.
        sys.exit(1)
