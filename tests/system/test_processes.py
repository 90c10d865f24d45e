"""Processes are stopped by pid and start time: those that we started, and never another that got a pid again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.dev import environment, processes
from ops.dev.processes import Identity, Process, ProcessError

# Says that it is up, then waits for ever.
WAITS = "import signal, sys; {handler}; print('up', flush=True); signal.pause()"
FIRST_THREAD_ENDS = """
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
SOON_S = 10.0


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that must survive the test."""
    process = subprocess.Popen([sys.executable, "-c", WAITS.format(handler="pass")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    yield process
    assert process.poll() is None, "a process that was none of ours was ended"
    process.kill()
    process.communicate()


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Process]:
    """A process of ours that ignores SIGTERM."""
    yield from started(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


@pytest.fixture
def obedient(tmp_path: Path) -> Iterator[Process]:
    """A process of ours that ends with SIGTERM."""
    yield from started(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))")


def started(directory: Path, handler: str) -> Iterator[Process]:
    process = Process(
        "waiting",
        [sys.executable, "-c", WAITS.format(handler=handler)],
        log=directory / "logs" / "waiting.log",
        env=environment.clean(os.environ),
        cwd=directory,
        data_dir=directory,
    )
    process.start()
    assert processes.wait_until(lambda: process.log.read_bytes() == b"up\n", SOON_S), process.ending()
    yield process
    process.kill()


def test_a_process_that_got_the_pid_of_ours_later_is_left_alone(stranger: subprocess.Popen[bytes]) -> None:
    real = processes.identify(stranger.pid)
    assert real is not None
    earlier = Identity(stranger.pid, real.started + "0")
    assert not processes.is_running(earlier)
    assert not processes.send(earlier, signal.SIGKILL)
    assert processes.stop(earlier)


def test_a_process_is_known_until_it_ends_even_as_a_zombie(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WAITS.format(handler="pass")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    identity = processes.identify(child.pid)
    assert identity is not None
    assert processes.is_running(identity)
    child.kill()
    # Not reaped yet: the pid is taken, but nothing runs.
    assert processes.wait_gone(identity, SOON_S)
    child.communicate()
    assert processes.identify(child.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ps tells of processes, not of threads")
def test_a_process_has_not_ended_before_the_last_of_its_threads() -> None:
    """Its first thread is a zombie, and another one still holds all its files."""
    child = subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    stat = Path(f"/proc/{child.pid}/stat")
    assert processes.wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", SOON_S)
    identity = processes.identify(child.pid)
    assert identity is not None
    assert processes.is_running(identity)
    processes.stop(identity)
    assert child.poll() == -signal.SIGTERM
    child.stdout.close()


def test_stop_waits_for_an_orderly_end_and_gives_the_status(obedient: Process) -> None:
    obedient.stop()
    assert obedient.exit_status == 7
    obedient.stop()


def test_stop_kills_what_ignores_it(waiting: Process) -> None:
    waiting.stop(grace_s=0.2)
    assert waiting.exit_status == -signal.SIGKILL


def test_a_frozen_process_can_be_stopped_too(obedient: Process) -> None:
    obedient.send(signal.SIGSTOP)
    obedient.stop()
    assert obedient.exit_status == 7


def test_another_program_can_stop_a_process_by_its_identity_alone(waiting: Process) -> None:
    assert waiting.identity is not None
    assert not processes.stop(waiting.identity, grace_s=0.2)
    assert not waiting.running


def test_a_process_starts_again_and_its_log_goes_on(obedient: Process) -> None:
    with pytest.raises(ProcessError, match="running already"):
        obedient.start()
    obedient.kill()
    with pytest.raises(ProcessError, match="not running"):
        obedient.send(signal.SIGTERM)
    obedient.start()
    assert processes.wait_until(lambda: obedient.log.read_bytes() == b"up\nup\n", SOON_S)


def test_of_a_process_that_failed_the_end_of_its_log_is_shown(tmp_path: Path) -> None:
    process = Process(
        "failing",
        [sys.executable, "-c", "raise SystemExit('the disk is gone')"],
        log=tmp_path / "failing.log",
        env=environment.clean(os.environ),
        cwd=tmp_path,
        data_dir=tmp_path,
    )
    process.start()
    assert processes.wait_until(lambda: not process.running, SOON_S)
    assert "status 1" in process.ending()
    assert "the disk is gone" in process.ending()
    assert str(process.log) in process.ending()
