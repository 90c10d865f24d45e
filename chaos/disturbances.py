"""What a preloaded library does to the disk and the clock of one process, changed while it runs (`disturbance.c`)."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from chaos import config

SOURCE = Path(__file__).parent / "faults" / "disturbance.c"
_NUMBERS = struct.Struct("qqq")


class Disturbances:
    """The library in `directory`, and a file of numbers for each process that runs with it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.missing = self._build()

    @property
    def _library(self) -> Path:
        return self._directory / "disturbance.so"

    def _build(self) -> str | None:
        """Compile the library; why it can't be had, else None."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not sys.platform.startswith("linux"):
            return "a preloaded library plays disk and clock: that needs Linux and a C compiler"
        if " " in str(self._directory):
            return f"a library can't be preloaded from {self._directory}, which has a blank in its name"
        self._directory.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=config.COMPILE_TIMEOUT_S, check=False)
        return None if done.returncode == 0 else f"the library can't be compiled: {done.stderr.strip()}"

    def environment(self, name: str) -> Mapping[str, str]:
        """What a process is to be started with; nothing where there is no library."""
        if self.missing:
            return {}
        numbers = self._directory / name
        if not numbers.exists():
            numbers.write_bytes(_NUMBERS.pack(0, 0, 0))
        return {"LD_PRELOAD": str(self._library.resolve()), "DISTURBANCE": str(numbers.resolve())}

    def set(self, name: str, *, sync_delay_ms: int = 0, clock_ahead_s: int = 0, disk_full: bool = False) -> None:
        """From now on so; nothing named means that all is as it should be."""
        packed = _NUMBERS.pack(sync_delay_ms * 1000, clock_ahead_s * 1_000_000_000, int(disk_full))
        with (self._directory / name).open("r+b") as file:
            file.write(packed)
