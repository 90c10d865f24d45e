"""How log entries and meta rows lie on disk: each with a checksum over its key and its value.

A row that comes back with another byte than was written must stop the peer, not be served. The checksum covers the key
too, so that a row which is read in another one's place is noticed. The replicated state has the digest instead; of it
only the head row carries a checksum (`raftreg.tables`).
"""

from __future__ import annotations

import struct
import zlib

_CHECKSUM = struct.Struct(">I")
_INDEX = struct.Struct(">Q")
_ENTRY = struct.Struct(">QI")  # term, checksum

LogEntry = tuple[bytes, int, int]


class DamagedRecord(Exception):
    """What is stored is not what was written; the message names the record."""


def seal(key: bytes, value: bytes) -> bytes:
    """A meta row as it is stored: checksum and value."""
    return _CHECKSUM.pack(zlib.crc32(value, zlib.crc32(key))) + value


def unseal(key: bytes, stored: bytes) -> bytes:
    """The value of a stored meta row. Raises DamagedRecord."""
    value = stored[_CHECKSUM.size :]
    if seal(key, value) != stored:
        raise DamagedRecord(f"the row {key.decode()!r} does not match its checksum")
    return value


def log_key(index: int) -> bytes:
    return _INDEX.pack(index)


def log_record(index: int, term: int, command: bytes) -> bytes:
    """A log entry as it is stored: term, checksum of index, term and command, command."""
    return _ENTRY.pack(term, _entry_checksum(index, term, command)) + command


def log_entry(key: bytes, stored: bytes | memoryview) -> LogEntry:
    """The entry (command, index, term) of a stored record. Raises DamagedRecord."""
    if len(key) != _INDEX.size or len(stored) < _ENTRY.size:
        raise DamagedRecord(f"the log entry under key {bytes(key).hex()} is cut short")
    (index,), (term, checksum) = _INDEX.unpack(key), _ENTRY.unpack_from(stored)
    command = bytes(stored[_ENTRY.size :])
    if _entry_checksum(index, term, command) != checksum:
        raise DamagedRecord(f"log entry {index} does not match its checksum")
    return command, index, term


def _entry_checksum(index: int, term: int, command: bytes) -> int:
    return zlib.crc32(command, zlib.crc32(_INDEX.pack(index) + _INDEX.pack(term)))
