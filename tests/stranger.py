"""A peer that nobody has asked: it connects to whatever listens on its host, again and again.

``python -m tests.stranger ADDRESS KIND`` goes on until it is killed. It says which port it has
found, once, and how it was received.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

LISTENS: Final = "0A"
TURN_S: Final = 0.1
KEPT: Final = 64
"""Connections to a port that are left open."""


def listening() -> list[int]:
    """Ports of this host on which somebody listens."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return sorted({int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENS})


def words(kind: str, chance: random.Random) -> bytes:
    """What a stranger says."""
    match kind:
        case "noise":
            return chance.randbytes(chance.choice([1, 8, 64, 4096, 100_000]))
        case "zeros":
            return bytes(chance.choice([1, 8, 64, 4096]))
        case "numbers":  # small ones, as counters and lengths are
            return b"".join(chance.randrange(16).to_bytes(8, "little") for _ in range(8))
        case "web":
            return b"GET / HTTP/1.1\r\nHost: there\r\n\r\n"
        case _:
            return b""


def call(address: str, port: int, content: bytes, kept: list[socket.socket]) -> None:
    """Connect, say something, and stay connected for a while."""
    connection = socket.socket()
    connection.settimeout(1.0)
    kept.append(connection)
    connection.connect((address, port))
    connection.sendall(content)


def main() -> None:
    address, kind = sys.argv[1:]
    chance = random.Random(f"{address} {kind}")
    kept: dict[int, list[socket.socket]] = {}
    while True:
        for port in listening():
            if port not in kept:
                sys.stdout.write(f"found port {port}\n")
                sys.stdout.flush()
            mine = kept.setdefault(port, [])
            with suppress(OSError):
                call(address, port, words(kind, chance), mine)
            if len(mine) > KEPT or kind == "zeros":
                mine.pop(0).close()
        time.sleep(TURN_S)


if __name__ == "__main__":
    main()
