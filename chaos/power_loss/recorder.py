"""The recorder as a shared library, and the environment that preloads it into a process under test."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import config

SOURCE = Path(__file__).with_name("recorder.c")
# The recorder ends its process with this status when it can't record.
STATUS_CANNOT_RECORD = 86


class NoRecorder(Exception):
    """The recorder can't be had here. The message is the reason, and what to do where something can be done."""


def compile_recorder(directory: Path) -> Path:
    """Compile the recorder into `directory`, or find it there from an earlier time. Raises NoRecorder."""
    if sys.platform != "linux":
        raise NoRecorder("the power-loss recorder needs Linux (it is preloaded, and reads /proc)")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoRecorder("the power-loss recorder needs a C compiler; make deps installs one")
    library = directory / f"recorder-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _compile(compiler, library)
    return library


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as building:
        made = Path(building) / "recorder.so"
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        done = subprocess.run(
            [compiler, *options, "-o", str(made), str(SOURCE), "-ldl", "-lpthread"],
            capture_output=True,
            text=True,
            timeout=config.COMPILE_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise NoRecorder(f"{compiler} can't compile {SOURCE.name}:\n{done.stderr}")
        os.replace(made, library)


def preload(library: Path, record: Path) -> dict[str, str]:
    """Environment variables with which a process notes its writes of data.mdb in `record` (appended to).

    A process has one record, so it must write one LMDB environment only.
    """
    if " " in str(library) or ":" in str(library):
        # ld.so takes both as separators, and there is no way to escape them.
        raise NoRecorder(f"the recorder must lie under a path without spaces and colons, not {library}")
    return {"LD_PRELOAD": str(library), "POWER_LOSS_RECORD": str(record.resolve())}
