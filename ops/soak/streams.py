"""`streams`: how fast image data go through a gateway, and in how much memory. N is the size of the large image in GB.

One gateway process on the real disk, without a registry. In each round, in turn: a bare loop writes and fsyncs the same
bytes, and reads them; a bare aiohttp server reads and drops them, and sends them from a file; the gateway takes them as
an image, and sends that. The gateway digests, inspects and fsyncs, which the others do not; what reads from HTTP and
keeps on this disk can't be faster than the slower of the two, and that is what its throughput is held to. Files are
dropped from the page cache before they are read. At the end one large image goes in and out, for the memory. What the
two servers spend on a GiB does not depend on what else the machine does, so it is told too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson

from chaos.ports import Reservation
from ops.dev.cluster import RUN_DIR
from ops.dev.processes import Process, wait_until
from ops.dev.wiring import ROOT
from ops.soak import stream_client
from ops.soak.outcome import Outcome
from ops.soak.stream_client import MIB, KnownBytes
from zonegw import config

LARGE_GB = 10
ROUNDS, ROUND_MIB = 5, 512
SHARE_MIN = 0.7
GROWTH_MAX_MIB = 64
_START_MAX_S = 60.0
_NOWHERE = "http://127.0.0.1:1"
_SINKS = ("upload", "download")


class Place:
    """What is measured, in a directory on the real disk."""

    def __init__(self, base: Path, known: KnownBytes, gateway: str, bare: str) -> None:
        self.base, self.known, self.gateway, self.bare = base, known, gateway, bare
        self.file = base / "bare"

    # The file system alone.

    def write(self, mib: int) -> float:
        began = time.monotonic()
        with self.file.open("wb", buffering=0) as file:
            for chunk in self.known.chunks(mib):
                file.write(chunk)
            os.fsync(file.fileno())
        return time.monotonic() - began

    def read(self, mib: int) -> float:
        forget(self.file)
        began = time.monotonic()
        with self.file.open("rb", buffering=0) as file:
            for chunk in self.known.chunks(mib):
                if file.read(MIB) != chunk:
                    raise RuntimeError("the disk gave back other bytes")
        return time.monotonic() - began

    # Bare HTTP.

    def drop(self, mib: int) -> float:
        return stream_client.upload(self.bare, "/", self.known, mib)

    def send(self, mib: int) -> float:
        forget(self.file)
        return stream_client.download(self.bare, "/", self.known, mib)

    # The gateway.

    def store(self, mib: int) -> tuple[str, float]:
        """Image and seconds."""
        body = {"name": "stream", "disk_format": "raw", "container_format": "bare"}
        image = _asked("POST", f"{self.gateway}/v2/images", body)["self"]
        took = stream_client.upload(self.gateway, f"{image}/file", self.known, mib)
        shown = _asked("GET", f"{self.gateway}{image}")
        if shown["status"] != "active" or shown["os_hash_value"] != self.known.sha512(mib):
            raise RuntimeError(f"the image is not what was uploaded: {shown}")
        return image, took

    def fetch(self, image: str, mib: int) -> float:
        for file in (self.base / "data" / "data").glob("??/*"):
            forget(file)
        return stream_client.download(self.gateway, f"{image}/file", self.known, mib)

    def delete(self, image: str) -> None:
        _asked("DELETE", f"{self.gateway}{image}")


def forget(path: Path) -> None:
    """Have the next reader of a file wait for the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _asked(method: str, url: str, body: object = None) -> dict[str, str]:
    data = None if body is None else orjson.dumps(body)
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=_START_MAX_S) as answer:
        text = answer.read()
    found: dict[str, str] = orjson.loads(text) if text else {}
    return found


async def run(large_gb: int = LARGE_GB) -> Outcome:
    return await asyncio.to_thread(_run, large_gb)


def _run(large_gb: int) -> Outcome:
    outcome = Outcome("streams", {"large_gb": large_gb, "round_mib": ROUND_MIB, "rounds": ROUNDS})
    base = RUN_DIR / "soak" / "streams"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    try:
        with _processes(base) as (place, gateway, bare):
            _rounds(outcome, place, gateway, bare)
            _large(outcome, place, gateway, large_gb * 1024)
    finally:
        shutil.rmtree(base)
    return outcome


@contextmanager
def _processes(base: Path) -> Iterator[tuple[Place, Process, Process]]:
    known = KnownBytes(base)
    ports = [Reservation(), Reservation()]
    addresses = [port.address for port in ports]
    text = config.render(zone="soak", gateway="soak-1", data_dir="data", listen=addresses[0], endpoints=[_NOWHERE])
    (base / "zonegw.toml").write_text(text, encoding="utf-8")
    gateway = _process(base, "gateway", "zonegw.cli", "serve", "--config", str(base / "zonegw.toml"))
    bare = _process(base, "bare", "ops.soak.bare_server", addresses[1].rpartition(":")[2], str(base / "bare"))
    try:
        for process, address in ((gateway, addresses[0]), (bare, addresses[1])):
            process.start()
            if not wait_until(partial(_answers, f"http://{address}"), _START_MAX_S):
                raise RuntimeError(process.ending())
        yield Place(base, known, *(f"http://{address}" for address in addresses)), gateway, bare
    finally:
        for process in (gateway, bare):
            process.stop()
        for port in ports:
            port.release()


def _process(base: Path, name: str, *module: str) -> Process:
    command = [sys.executable, "-m", *module]
    return Process(name, command, log=base / f"{name}.log", env=os.environ, cwd=ROOT, data_dir=base / name)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/healthcheck", timeout=_START_MAX_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _rounds(outcome: Outcome, place: Place, gateway: Process, bare: Process) -> None:
    """Shares are of the same round: the disk and the machine are never the same for long."""
    took: dict[str, list[float]] = {name: [] for name in ("write", "read", "drop", "send", "upload", "download")}
    spent: dict[str, list[float]] = {name: [] for name in ("drop", "send", "upload", "download")}
    for _ in range(ROUNDS):
        took["write"].append(place.write(ROUND_MIB))
        with _spent(bare, spent["drop"]):
            took["drop"].append(place.drop(ROUND_MIB))
        with _spent(gateway, spent["upload"]):
            image, seconds = place.store(ROUND_MIB)
        took["upload"].append(seconds)
        took["read"].append(place.read(ROUND_MIB))
        with _spent(bare, spent["send"]):
            took["send"].append(place.send(ROUND_MIB))
        with _spent(gateway, spent["download"]):
            took["download"].append(place.fetch(image, ROUND_MIB))
        place.delete(image)
    _tell(outcome, took, spent)


@contextmanager
def _spent(process: Process, seconds: list[float]) -> Iterator[None]:
    """Adds the processor time that a process takes meanwhile."""
    before = _processor_s(process)
    yield
    seconds.append(_processor_s(process) - before)


def _processor_s(process: Process) -> float:
    fields = (_proc(process) / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _proc(process: Process) -> Path:
    if process.identity is None:
        raise RuntimeError(process.ending())
    return Path("/proc") / str(process.identity.pid)


def _tell(outcome: Outcome, took: dict[str, list[float]], spent: dict[str, list[float]]) -> None:
    for name, seconds in took.items():
        outcome.figures[f"{name}_mib_per_s"] = round(ROUND_MIB / statistics.median(seconds))
    for name, seconds in spent.items():
        outcome.figures[f"{name}_processor_s_per_gib"] = round(statistics.median(seconds) * 1024 / ROUND_MIB, 2)
    for name, bare in (("upload", ("write", "drop")), ("download", ("read", "send"))):
        slower = [max(pair) for pair in zip(*(took[other] for other in bare), strict=True)]
        share = statistics.median(least / own for least, own in zip(slower, took[name], strict=True))
        outcome.figures[f"{name}_share"] = round(share, 2)
        outcome.within(share >= SHARE_MIN, f"the {name} reaches {share:.2f} of the slower of {' and '.join(bare)}")


def _large(outcome: Outcome, place: Place, gateway: Process, mib: int) -> None:
    image, _ = place.store(64)  # what a first transfer needs once and keeps
    place.fetch(image, 64)
    place.delete(image)
    memory = Memory(gateway)
    image, took = place.store(mib)
    outcome.figures["large_upload_mib_per_s"] = round(mib / took)
    outcome.figures["large_upload_growth_mib"] = memory.grown_mib()
    memory = Memory(gateway)
    took = place.fetch(image, mib)
    outcome.figures["large_download_mib_per_s"] = round(mib / took)
    outcome.figures["large_download_growth_mib"] = memory.grown_mib()
    place.delete(image)
    for name in _SINKS:
        grown = outcome.figures[f"large_{name}_growth_mib"]
        outcome.require(grown < GROWTH_MAX_MIB, f"the gateway grew by {grown} MiB in a large {name}")


class Memory:
    """How far a process' resident memory rises above what it is now, at its peak."""

    def __init__(self, process: Process) -> None:
        self._directory = _proc(process)
        (self._directory / "clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        self._before = self._kib("VmRSS")

    def _kib(self, name: str) -> int:
        lines = (self._directory / "status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def grown_mib(self) -> int:
        return (self._kib("VmHWM") - self._before) // 1024
