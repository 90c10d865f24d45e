"""Processes that we start, find again and stop: by their own pid, which is never trusted alone.

A pid is reused by the kernel, so each process is known by pid and start time; a signal is sent only while both match.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# After SIGTERM a process hands over, syncs and closes; then it is killed.
STOP_GRACE_S = 15.0
# A killed process is gone as soon as the kernel has freed its memory.
KILL_WAIT_S = 10.0
POLL_INTERVAL_S = 0.02
# What is shown of a log when its process failed.
LOG_TAIL_BYTES = 8 * 1024
LOG_TAIL_LINES = 15


class ProcessError(Exception):
    """A process could not be started, or didn't do what was waited for. The message names its log."""


@dataclass(frozen=True)
class Identity:
    """A process: its pid and when it started, in a form that only comparison gives a meaning to."""

    pid: int
    started: str


def identify(pid: int) -> Identity | None:
    """The process that has `pid` now; None if there is none, or only one that ended and waits to be reaped."""
    started = _started_linux(pid) if sys.platform == "linux" else _started_elsewhere(pid)
    return Identity(pid, started) if started else None


def _started_linux(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets, which may itself hold blanks and brackets.
    fields = text.rpartition(")")[2].split()
    # A zombie with other threads is still ending: until they are gone it holds its files and can't be reaped.
    ended = fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)
    return None if ended else f"{_boot()}.{fields[19]}"


@functools.cache
def _boot() -> str:
    """Start times count from the boot, so another boot could bring the same pid and time again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started_elsewhere(pid: int) -> str | None:
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used, in user and in kernel mode; 0 of one that is gone, or that does not
    run on Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_running(identity: Identity) -> bool:
    """Whether this very process still runs."""
    return identify(identity.pid) == identity


def send(identity: Identity, number: signal.Signals) -> bool:
    """Send a signal to this very process; False if it has ended."""
    if sys.platform == "linux":
        return _send_through_descriptor(identity, number)
    if not is_running(identity):
        return False
    os.kill(identity.pid, number)
    return True


def _send_through_descriptor(identity: Identity, number: signal.Signals) -> bool:
    """As `send`; the descriptor means one process for ever, so there is no moment at which another could be hit."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_running(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until `condition` holds; False if it doesn't in time. For what can't be waited for otherwise."""
    never = threading.Event()
    for _ in range(max(1, round(timeout_s / POLL_INTERVAL_S))):
        if condition():
            return True
        never.wait(POLL_INTERVAL_S)
    return condition()


def wait_gone(identity: Identity, timeout_s: float) -> bool:
    """Wait until this process has ended; it need not be a child of ours."""
    return wait_until(lambda: not is_running(identity), timeout_s)


def stop(identity: Identity, *, grace_s: float = STOP_GRACE_S) -> bool:
    """SIGTERM, then SIGKILL after the grace; True if it went by itself. Raises ProcessError if it can't be ended."""
    send(identity, signal.SIGTERM)
    if wait_gone(identity, grace_s):
        return True
    send(identity, signal.SIGKILL)
    if not wait_gone(identity, KILL_WAIT_S):
        raise ProcessError(f"process {identity.pid} does not end, not even by SIGKILL; it may wait for a dead disk")
    return False


class Process:
    """One program of ours with its own session and log file, which can be started again after it ended."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path, data_dir: Path
    ) -> None:
        self.name, self.command, self.log, self.data_dir = name, list(command), log, data_dir
        self._env, self._cwd = dict(env), cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self.identity: Identity | None = None

    def start(self, extra_env: Mapping[str, str] | None = None) -> None:
        """Start the program; what it prints is appended to the log. Raises ProcessError if it runs already."""
        if self.running:
            raise ProcessError(f"{self.name} is running already, as process {self._pid}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                env=self._env | dict(extra_env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C at the terminal is for the program that started us, which stops us in its own order.
                start_new_session=True,
            )
        self.identity = identify(self._popen.pid)

    @property
    def running(self) -> bool:
        """Whether it runs now. Takes note of its end, so that the kernel can forget it."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        """What it ended with (minus the signal's number), None while it runs or before it started."""
        return self._popen.poll() if self._popen else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal. Raises ProcessError if the process has ended."""
        if not (self.running and self.identity and send(self.identity, number)):
            raise ProcessError(f"{self.name} is not running. {self.ending()}")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Nothing if it has ended."""
        self._end(signal.SIGKILL, KILL_WAIT_S)

    def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, then SIGKILL after the grace. Nothing if it has ended."""
        try:
            self._end(signal.SIGTERM, grace_s)
        except ProcessError:
            self.kill()

    def _end(self, number: signal.Signals, wait_s: float) -> None:
        if not self.running or self._popen is None or self.identity is None:
            return
        send(self.identity, number)
        # A process that was stopped (SIGSTOP) handles no signal but SIGKILL until it goes on.
        send(self.identity, signal.SIGCONT)
        try:
            self._popen.wait(wait_s)
        except subprocess.TimeoutExpired as error:
            raise ProcessError(
                f"{self.name} (process {self._pid}) did not end within {wait_s} s of {number}"
            ) from error

    def ending(self) -> str:
        """A sentence with its exit status and the end of its log, for messages."""
        status = "has not ended" if self.exit_status is None else f"ended with status {self.exit_status}"
        return f"{self.name} {status}; the end of {self.log}:\n{log_tail(self.log)}"

    @property
    def _pid(self) -> int:
        return self._popen.pid if self._popen else 0


def log_tail(log: Path) -> str:
    """The last lines of a log, indented."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        lines = ["(there is no such file)"]
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:] or ["(empty)"])
