"""The process that ranks are forked from."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, multiprocessing, os, shutil, signal, threading, time
from multiprocessing import forkserver
from pathlib import Path
from ppll import fork_server

set_preload = forkserver.set_forkserver_preload
forkserver.set_forkserver_preload = lambda names: set_preload(names[:1])  # The others take long.


def look_at_server():
    ours, theirs = multiprocessing.get_context("forkserver").Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=tell, args=(theirs,))
    process.start()
    process.join()
    return ours.recv()


def tell(pipe):
    ends_by_sigterm = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    leaves_imports = gc.isenabled() and gc.get_freeze_count() > 1000
    pipe.send((os.getppid(), ends_by_sigterm, leaves_imports))


def start():
    fork_server.warm_up()
    found.append(look_at_server())
    found.append(threading.get_native_id())


if __name__ == "__main__":
    found = []
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    (server, ends_by_sigterm, leaves_imports), identity = found
    while Path(f"/proc/self/task/{identity}").exists():
        time.sleep(0.001)
    os.kill(server, signal.SIGTERM)
    fork_server.warm_up()
    assert look_at_server() == (server, True, True)
    assert ends_by_sigterm
    assert leaves_imports
    shutil.rmtree(fork_server.temporary_folder())
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for threads in /proc")
@pytest.mark.processes
def test_it_ends_with_the_process_that_started_it_and_not_before(tmp_path: Path) -> None:
    """Neither with the thread, nor by a signal to all; what is forked from it does end by that, and
    looks for garbage, but not among what was imported before."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Its processes hold the pipe, so this waits for all of them.
    done = subprocess.run([sys.executable, str(script)], stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


LAST_LINE = """
import threading
from multiprocessing import forkserver
from ppll import fork_server

set_preload = forkserver.set_forkserver_preload
forkserver.set_forkserver_preload = lambda names: set_preload(names[:1])  # The others take long.


def start():
    threading.main_thread().join()
    fork_server.warm_up()
    print("done")


threading.Thread(target=start).start()
"""


@pytest.mark.processes
def test_it_starts_though_the_main_thread_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", LAST_LINE], capture_output=True, timeout=60)
    assert done.stdout == b"done\n", done.stderr.decode()
