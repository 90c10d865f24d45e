"""Copying one committed moment of the state to a file beside a running peer, without taking its time.

The copy is a process of its own (`python -m raftreg.snapshot_copy`), started by `CopyProcess`: millions of rows pass
through Python, and in a thread they would take the interpreter from the loop that answers clients. It opens the peer's
environment to read only; its read transaction holds log and state of the same commit. Never a fork of the peer: LMDB
and threads don't survive it.

What is written may be read while the copy goes on; only its end says that the whole is there. It ends when its
deadline passes or its peer is gone.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

from raftreg.records import DamagedRecord
from raftreg.snapshot_file import copy_to_spool
from raftreg.state_scrub import checked_rows
from raftreg.store import committed_state
from raftreg.tables import read_head

# A copy that does not notice its own deadline, as on a disk that hangs, is killed so long after it.
_OVERDUE_S = 5.0
_EXIT_DAMAGED = 65  # EX_DATAERR
_PACKAGE = Path(__file__).resolve().parent


class CopyProcess:
    """One copy of the store in `data_dir` to `path`, under way from construction on."""

    def __init__(self, data_dir: Path, path: Path, *, chunk_bytes: int, reader_max_s: float) -> None:
        self.path = path
        self._killed_at = time.monotonic() + reader_max_s + _OVERDUE_S
        command = [sys.executable, "-m", __name__, str(data_dir.resolve()), str(path.resolve())]
        self._process = subprocess.Popen(
            [*command, str(chunk_bytes), str(reader_max_s)],
            cwd=_PACKAGE.parent,  # `-m` finds the very package that runs here
            stdin=subprocess.DEVNULL,
        )

    @property
    def damaged(self) -> bool:
        """Whether what it read is not what was written; its message says what."""
        return self._process.returncode == _EXIT_DAMAGED

    def succeeded(self) -> bool | None:
        """Whether the copy is complete; None while it is under way."""
        status = self._process.poll()
        if status is None:
            if time.monotonic() > self._killed_at:
                self._process.kill()
            return None
        return status == 0

    def wait(self) -> None:
        """Until it has ended, which its deadline bounds."""
        self._process.wait()

    def end(self) -> None:
        """Stop it if it is under way, and wait until it is gone. What it has written stays."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def copy(data_dir: Path, path: Path, chunk_bytes: int, reader_max_s: float) -> None:
    """What the process does. Raises what `copy_to_spool` raises."""
    gc.disable()  # rows are many and hold no cycles
    parent = os.getppid()
    with committed_state(data_dir) as reader:
        index = read_head(reader.view()).applied
        copy_to_spool(reader, index, path, chunk_bytes, reader_max_s, lambda: os.getppid() == parent, checked_rows)


if __name__ == "__main__":
    _, directory, target, chunk, seconds = sys.argv
    try:
        copy(Path(directory), Path(target), int(chunk), float(seconds))
    except DamagedRecord as damage:
        print(f"a snapshot was not copied: {damage}", file=sys.stderr)
        sys.exit(_EXIT_DAMAGED)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"a snapshot was not copied: {error}")
