"""Inspection of image data on their way in: of which format they really are, how large a disk they hold, and whether
they would have a hypervisor open other files.

The formats are read by oslo.utils' inspectors, as Glance, Nova and Cinder do. In container format `bare` the data must
be what `disk_format` says: `ami`, `ari`, `aki` and `ploop` have no inspector, and pass as what they are called; `raw`
may hold a partition table or LUKS. In other containers (`ovf`, `ova`, `docker`, `compressed`, the Amazon ones) nothing
need match. Data that any inspector knows must be safe, whatever they are called.

Most formats are known after the first megabyte, and refused then; only what has a footer is looked at to its end.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Any

from oslo_utils.imageutils.format_inspector import (
    ALL_FORMATS,
    EndCaptureRegion,
    FileInspector,
    SafetyCheck,
    SafetyCheckFailed,
)

from zonegw.errors import BadRequest, Conflict
from zonegw.inspection_rules import InspectionRules

# The descriptor of a VMDK is within this, wherever it begins; other inspectors need far less of the beginning.
HEAD_BYTES = (1 << 20) + 512
# VHDX points from one table to the next, and its inspector looks for the next only when it gets another piece.
VHDX_PIECE_BYTES = 4096
SIZE_MAX = (1 << 63) - 1

# Formats that may show in data which are what they are called: a raw disk has partitions or is encrypted, an ISO that
# boots from a stick has a partition table, and a VHD of fixed size is a raw disk with a footer.
WITHIN = {"iso": ("gpt",)} | dict.fromkeys(("raw", "ami", "ari", "aki", "ploop", "vhd"), ("gpt", "luks"))
# Disk formats whose data are bytes without a structure of their own: as large as they are.
PLAIN = ("raw", "ami", "ari", "aki")
SAID = {"gpt": "raw with a partition table", "luks": "raw and encrypted (LUKS)"}
# What these inspectors check is no danger: a partition table that is odd, a version of LUKS.
UNCHECKED = ("gpt", "luks")
UNREADABLE = "their beginning can't be read; they are damaged, or made to look like it"
# What a failed safety check means, and what to do about it.
REASONS = {
    "backing_file": "they name a backing file; flatten them with `qemu-img convert -O qcow2`",
    "data_file": "they keep their data in another file; bring these in with `qemu-img convert -O qcow2`",
    "unknown_features": "they use features of qcow2 that are not known here; rewrite them with `qemu-img convert`",
    "descriptor": "their descriptor is not one of a VMDK in a single file; make one with `qemu-img convert -O vmdk`",
    "footer": "header and footer do not agree; rewrite them with `qemu-img convert -O vmdk`",
    "banned": "nobody supports this format; convert them with `qemu-img convert -O qcow2`",
}


class FixedVhd(FileInspector):
    """A VHD of fixed size: the footer alone tells it."""

    NAME = "vhd"

    def _initialize(self) -> None:
        self.new_region("footer", EndCaptureRegion(512))
        self.add_safety_check(SafetyCheck.null())

    @property
    def format_match(self) -> bool:
        return self.complete and bytes(self.region("footer").data).startswith(b"conectix")

    @property
    def virtual_size(self) -> int:
        size: int = struct.unpack(">Q", self.region("footer").data[48:56])[0]
        return size


class Inspection:
    """Of the data of one image, while they go through `of`."""

    def __init__(self, rules: InspectionRules, image: Mapping[str, Any]) -> None:
        self._formats = image["disk_format"], image["container_format"]
        self._format, self._bare = str(image["disk_format"]), image["container_format"] == "bare"
        self._strict = self._bare and not rules.allow_mismatch
        self._inspectors = [] if self._format in rules.off else _inspectors(self._format)
        self._open = list(self._inspectors)
        self._broken: set[FileInspector] = set()
        self._virtual_size: int | None = None

    @property
    def decided(self) -> bool:
        """Whether what is still to come changes nothing."""
        return not self._open

    def check_same(self, image: Mapping[str, Any]) -> None:
        """Raises Conflict where the image says something else of its data by now."""
        if (image["disk_format"], image["container_format"]) != self._formats:
            raise Conflict("the image's formats were changed while its data came in; nothing was kept of them")

    def virtual_size(self, size: int) -> int | None:
        """How large the disk in these `size` bytes is, as far as that is known."""
        return size if self._bare and self._format in PLAIN else self._virtual_size

    async def of(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body. Raises BadRequest for what must not be an image's data, as soon as that is known."""
        size = 0
        async for piece in self._watched(body):
            size += len(piece)
            yield piece
        if self._open and size:  # Nova uploads nothing, as qcow2, to have an image without data active
            await asyncio.to_thread(self._end)

    async def _watched(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Inspectors want the head in one piece; it is passed on in those in which it came."""
        head: list[bytes] = []
        missing = HEAD_BYTES
        async for piece in body:
            if self.decided:
                yield piece
                continue
            head.append(piece)
            missing -= len(piece)
            if missing <= 0:
                await asyncio.to_thread(self._take, b"".join(head))
                for one in head:
                    yield one
                head.clear()
        if head:
            await asyncio.to_thread(self._take, b"".join(head))
            for one in head:
                yield one

    def _take(self, piece: bytes) -> None:
        for inspector in self._open:
            try:
                _feed(inspector, piece)
            except Exception:  # whatever an inspector meets in bytes that may be anything
                self._broken.add(inspector)
        self._open = [one for one in self._open if one not in self._broken and not one.complete]
        if not self._open:
            self._judge()

    def _end(self) -> None:
        for inspector in self._open:
            inspector.finish()
        self._open.clear()
        self._judge()

    def _judge(self) -> None:
        found = {one.NAME: one for one in self._inspectors if _matches(one)}
        if self._strict:
            _check_match(self._format, set(found))
        for inspector in found.values():
            if inspector.NAME not in UNCHECKED:
                _check_safe(inspector, broken=inspector in self._broken)
        if self._bare and self._format in found:
            self._virtual_size = _virtual_size(found[self._format])
        self._inspectors.clear()


def _inspectors(disk_format: str) -> list[FileInspector]:
    found: list[FileInspector] = [kind() for name, kind in ALL_FORMATS.items() if name != "raw"]
    return [*found, FixedVhd()] if disk_format == "vhd" else found


def _feed(inspector: FileInspector, piece: bytes) -> None:
    if inspector.NAME != "vhdx":
        inspector.eat_chunk(piece)
        return
    for start in range(0, len(piece), VHDX_PIECE_BYTES):
        inspector.eat_chunk(piece[start : start + VHDX_PIECE_BYTES])


def _matches(inspector: FileInspector) -> bool:
    try:
        return bool(inspector.format_match)
    except AttributeError:  # the VMDK one, for a text that is no descriptor
        return False


def _check_match(disk_format: str, found: set[str]) -> None:
    others = found.difference([disk_format], WITHIN.get(disk_format, ()))
    if others:
        what = " and ".join(SAID.get(name, name) for name in sorted(others))
        raise BadRequest(
            f"The data are {what}, but disk_format is {disk_format}: set disk_format to what they are, or convert "
            f"them with `qemu-img convert`; nothing was kept of them"
        )
    if disk_format in ALL_FORMATS and disk_format != "raw" and disk_format not in found:
        raise BadRequest(
            f"The data are not {disk_format}, as disk_format says: set disk_format to what they are (raw, where they "
            f"have no format), or convert them with `qemu-img convert`; nothing was kept of them"
        )


def _check_safe(inspector: FileInspector, *, broken: bool) -> None:
    try:
        if not broken:
            return inspector.safety_check()
        reasons = [UNREADABLE]
    except SafetyCheckFailed as error:
        reasons = [REASONS.get(name, f"their {name} is not safe") for name in error.failures]
    except Exception:  # as in _take
        reasons = [UNREADABLE]
    raise BadRequest(f"The data are {inspector.NAME} and not safe: {'; '.join(reasons)}. Nothing was kept of them")


def _virtual_size(inspector: FileInspector) -> int | None:
    try:
        size = int(inspector.virtual_size)
    except Exception:  # as in _take
        size = -1
    if not 0 <= size <= SIZE_MAX:
        raise BadRequest(f"The data are {inspector.NAME}, but how large the disk is can't be read; nothing was kept")
    return size or None
