"""Rings of a Swift with one device, made by Swift's own builder: `python make_rings.py DIRECTORY SERVER=PORT...`.

Runs in Swift's environment.
"""

import sys
from pathlib import Path

from swift.common.ring import RingBuilder

PART_POWER = 2


def make(directory: Path, server: str, port: int) -> None:
    builder = RingBuilder(PART_POWER, 1, 0)
    place = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"region": 0, "zone": 0, "weight": 1, "device": "disk", "meta": "", **place})
    builder.rebalance()
    builder.get_ring().save(str(directory / f"{server}.ring.gz"))


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, _, number = argument.partition("=")
        make(Path(sys.argv[1]), name, int(number))
