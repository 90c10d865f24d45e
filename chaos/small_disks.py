"""Small file systems for stores, each an image file on a loop device: a disk that is really full, of one process.

A machine that lets nobody mount anything has none; `missing` says why.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from chaos import config
from ops.dev.processes import ProcessError

_FILLER = "filler"
# What a disk is filled with: as much as fits of the first, then of the next.
_PIECES = (64 << 20, 1 << 20, 4 << 10)


class SmallDisks:
    """Made in `directory`, on the disk that this is on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._images: dict[Path, Path] = {}
        self._numbers = itertools.count()
        self.missing = self._try()

    def _try(self) -> str | None:
        """Mount one and take it away again; why that is not possible, else None."""
        if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
            return "a small file system needs Linux, root and mkfs.ext4"
        place = self._directory / "trial"
        try:
            self._mount(place, config.SMALL_DISK_BYTES_MIN)
            self.remove(place)
        except ProcessError as error:
            return f"a small file system can't be mounted: {error}"
        return None

    def put_under(self, store: Path, size: int) -> None:
        """Move the directory `store`, which nobody uses now, to a small disk at the same path. Raises ProcessError."""
        aside = _aside(store)
        store.rename(aside)
        self._mount(store, size)
        _copy(aside, store)
        shutil.rmtree(aside)

    def take_away(self, store: Path) -> None:
        """Undo `put_under`, or what was done of it. Raises ProcessError."""
        aside = _aside(store)
        if store in self._images:
            if not aside.exists():
                (store / _FILLER).unlink(missing_ok=True)
                _copy(store, aside)
            self.remove(store)
        if aside.exists():
            aside.rename(store)

    def fill(self, store: Path, left: int) -> None:
        """Take up all of the small disk below `store` but so many bytes; who writes there meanwhile has less."""
        handle = os.open(store / _FILLER, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for piece in _PIECES:
                with contextlib.suppress(OSError):
                    while shutil.disk_usage(store).free - left >= piece:
                        os.posix_fallocate(handle, os.fstat(handle).st_size, piece)
        finally:
            os.close(handle)

    def remove_all(self) -> None:
        """Unmount whatever there is, with all that it holds."""
        for place in list(self._images):
            self.remove(place)

    def remove(self, place: Path) -> None:
        """Unmount one, with all that it holds, and remove its directory."""
        _run("umount", str(place))
        self._images.pop(place).unlink()
        place.rmdir()

    def _mount(self, place: Path, size: int) -> None:
        place.mkdir(parents=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        image = self._directory / f"{next(self._numbers)}.img"
        with image.open("xb") as file:
            file.truncate(size)
        try:
            # No part is kept for root, who may be the one that runs this.
            _run("mkfs.ext4", "-q", "-m", "0", str(image))
            _run("mount", "-o", "loop", str(image), str(place))
        except ProcessError:
            image.unlink()
            place.rmdir()
            raise
        self._images[place] = image
        (place / "lost+found").rmdir()


def _aside(store: Path) -> Path:
    return store.with_name(f"{store.name} of before")


def _copy(source: Path, target: Path) -> None:
    """Everything, with holes in files as they are, on the disk when this returns: kills come next."""
    target.mkdir(exist_ok=True)
    _run("cp", "-a", "--sparse=always", f"{source}/.", str(target))
    _run("sync", "-f", str(target))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=config.COMMAND_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProcessError(str(error)) from error
    if done.returncode != 0:
        raise ProcessError(f"{' '.join(command)} failed: {done.stderr.strip()}")
