"""A backup holds what the peer held, compressed; what was damaged, cut off or made by another release is refused."""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from raftreg import backup, backup_file, cli_progress, cluster_init, config, recovery, state_machine, stored_peer
from raftreg.backup_file import VERSION, Backup, BackupError, Label
from raftreg.config import MIB, PeerConfig
from raftreg.engine import regular_entry
from raftreg.store import Store
from tests.state_life import uuid_of
from tests.test_cli import peer_arguments, raftreg

IMAGES = 1500
BATCH = 250
REFUSED = r"is damaged|is no backup, or was cut off|has format \d+, this release reads format"
HEAD_BYTES, FOOTER_BYTES = 16, 28


def image(number: int) -> dict[str, Any]:
    attributes = {"name": f"backup of server {number}", "owner": uuid_of(f"owner {number % 50}"), "min_disk": 20}
    properties = {"base_image_ref": uuid_of(f"base {number}"), "instance_uuid": uuid_of(f"instance {number}")}
    return {"op": "create_image", "uuid": uuid_of(f"{number}"), "attributes": attributes, "properties": properties}


def entry_of(*commands: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb([1, 1_700_000_000_000_000, list(commands)])
    return packed


def fill(settings: PeerConfig, images: int = IMAGES) -> None:
    """As if this peer had been started and had applied these images; one entry more is in its log, not applied."""
    store = Store(settings.data_dir, map_size_bytes=1 << 30)
    store.put_log(1, 0, b"\1")
    index = 1
    for first in range(0, images, BATCH):
        index += 1
        entry = entry_of(*(image(number) for number in range(first, min(first + BATCH, images))))
        assert all("ok" in result for result in state_machine.apply(store.view(), index, entry))
        store.put_log(index, 3, regular_entry(entry))
    store.put_hard_state(3, settings.name)
    store.put_log(index + 1, 3, regular_entry(entry_of({"op": "register_zone", "zone": "ams"})))
    store.put_commit_index(index)
    store.commit()
    store.close()


def made(directory: Path, images: int = IMAGES) -> PeerConfig:
    """A peer that is stopped and holds these images."""
    peer = cluster_init.PlannedPeer("a", "127.0.0.1:9", "127.0.0.1:10")
    cluster_init.initialise(directory, cluster_init.Plan([peer]), offline=True)
    settings = config.load(directory / "a")
    fill(settings, images)
    return settings


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> PeerConfig:
    return made(tmp_path_factory.mktemp("peer") / "my registry")


@pytest.fixture(scope="module")
def whole(peer: PeerConfig, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a backup of several chunks."""
    file = tmp_path_factory.mktemp("backup") / "registry.backup"
    backup.create(peer, file)
    return file.read_bytes()


@pytest.fixture
def file(tmp_path: Path, whole: bytes) -> Path:
    file = tmp_path / "registry.backup"
    file.write_bytes(whole)
    return file


def limited(settings: PeerConfig, **limits: Any) -> PeerConfig:
    return dataclasses.replace(settings, limits=dataclasses.replace(settings.limits, **limits))


def rows_of(settings: PeerConfig) -> Iterator[tuple[bytes, bytes]]:
    with stored_peer.opened(settings) as store:
        yield from store.begin_read().rows()


def test_a_backup_holds_all_rows_and_the_log_behind_them_much_smaller(peer: PeerConfig, file: Path) -> None:
    with Backup(file) as opened:
        chunks = list(opened.rows())
        log = list(opened.log())
    rows = [row for chunk in chunks for row in chunk]
    assert rows == list(rows_of(peer))
    assert [index for _, index, _ in log] == [opened.label.log_index + 1] == [opened.label.log_last]
    assert (opened.label.images, opened.label.version, opened.label.peer) == (IMAGES, VERSION, "a")
    raw_bytes = sum(len(key) + len(value) for key, value in rows)
    assert raw_bytes > 2 * MIB
    assert file.stat().st_size < raw_bytes / 3


def offsets(size: int) -> list[int]:
    """Start with the first frame's head, the middle, and all of label and footer."""
    return sorted({*range(48), *range(48, size, size // 24), *range(size - 300, size)})


def test_one_changed_byte_anywhere_is_refused(file: Path, whole: bytes) -> None:
    for position in offsets(len(whole)):
        file.write_bytes(whole[:position] + bytes((whole[position] ^ 0x41,)) + whole[position + 1 :])
        with pytest.raises(BackupError, match=REFUSED):
            backup.verify(file)
    file.write_bytes(whole)
    backup.verify(file)


def test_a_file_that_was_cut_off_or_grew_is_refused(file: Path, whole: bytes) -> None:
    size = len(whole)
    for length in [*range(60), *range(60, size, size // 100), *range(size - 300, size)]:
        file.write_bytes(whole[:length])
        with pytest.raises(BackupError, match="cut off"):
            backup.verify(file)
    for more in (b"\0", whole):
        file.write_bytes(whole + more)
        with pytest.raises(BackupError, match=REFUSED):
            backup.verify(file)


def frames_of(whole: bytes) -> list[bytes]:
    offset = int.from_bytes(whole[-12:-4], "big")
    position, found = HEAD_BYTES, []
    while position < offset:
        end = position + 4 + int.from_bytes(whole[position : position + 4], "big")
        found.append(whole[position:end])
        position = end
    return found


def sealed(whole: bytes, frames: list[bytes]) -> bytes:
    """A file of these frames with the label of `whole` and a footer that fits."""
    label = whole[int.from_bytes(whole[-12:-4], "big") : -FOOTER_BYTES]
    content = whole[:HEAD_BYTES] + b"".join(frames)
    facts = whole[:HEAD_BYTES] + len(content).to_bytes(8, "big")
    return content + label + facts + zlib.crc32(label + facts).to_bytes(4, "big")


def frame(snapshot_id: bytes, sequence: int, *parts: Any) -> bytes:
    body = msgpack.packb(parts)
    packed: bytes = msgpack.packb([snapshot_id, sequence, zlib.crc32(body), body])
    return len(packed).to_bytes(4, "big") + packed


def test_chunks_that_are_missing_doubled_swapped_or_too_large_are_refused(file: Path, whole: bytes) -> None:
    frames = frames_of(whole)
    assert len(frames) >= 5
    assert sealed(whole, frames) == whole
    header, first, second, *rest = frames
    snapshot_id = msgpack.unpackb(header[4:])[0]
    bomb = frame(snapshot_id, 1, "rows", zstandard.compress(bytes(64 * MIB)))
    unsized = frame(
        snapshot_id, 1, "rows", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MIB))
    )
    no_log = frame(snapshot_id, len(frames) - 1, "log", zstandard.compress(msgpack.packb([b"command", "9", 3])))
    huge = (1 << 31).to_bytes(4, "big") + first[4:]
    wrong_ones = [
        [header, *frames[2:]], frames[:-1], [header, first, *frames[1:]], [header, second, first, *rest],
        [*frames, first], frames[1:], [header, bomb, second, *rest], [header, unsized, second, *rest],
        [*frames[:-1], no_log], [header, huge, second, *rest],
    ]  # fmt: skip
    for wrong in wrong_ones:
        file.write_bytes(sealed(whole, wrong))
        with pytest.raises(BackupError, match=REFUSED):
            backup.verify(file)


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_format_is_named_with_what_to_do(file: Path, whole: bytes, version: int) -> None:
    at_both_ends = whole[:HEAD_BYTES].replace(bytes((0, VERSION)), bytes((0, version)))
    file.write_bytes(at_both_ends + whole[HEAD_BYTES:])
    with pytest.raises(BackupError, match=f"format {version}, this release reads format {VERSION}; verify and restore"):
        backup.verify(file)
    file.write_bytes(whole[:-FOOTER_BYTES] + at_both_ends + whole[-12:])
    with pytest.raises(BackupError, match=f"format {version}, this release reads"):
        backup_file.read_label(file)


def test_a_damaged_backup_makes_no_store(tmp_path: Path, file: Path, whole: bytes) -> None:
    directory = tmp_path / "new"
    raftreg("init", directory, *peer_arguments("a"))
    shutil.rmtree(directory / "a" / "store")
    file.write_bytes(whole[: len(whole) // 2] + bytes(8) + whole[len(whole) // 2 + 8 :])
    assert "is damaged" in raftreg("recover", "--from-backup", file, directory / "a", "--yes", status=1)
    configured = stored_peer.below(directory / "a")[0]
    with pytest.raises(BackupError, match="is damaged"):
        recovery.from_backup(configured, file, epoch=None, id_floor=None, now_us=1)
    assert not configured.has_store
    assert list((directory / "a").glob(".recover*")) == []


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def test_a_backup_that_fails_leaves_no_file(peer: PeerConfig, tmp_path: Path) -> None:
    file = tmp_path / "registry.backup"
    with pytest.raises(TimeoutError, match="snapshot_reader_max_s"):
        backup.create(limited(peer, snapshot_reader_max_s=1e-9), file)
    with pytest.raises(InterruptedError):
        backup.create_at(peer.data_dir, "a", peer.limits, file, go_on=lambda: False)
    with pytest.raises(BackupError, match="no directory"):
        backup.create(peer, tmp_path / "nowhere" / "registry.backup")
    assert left_in(tmp_path) == []


def test_too_little_room_is_refused_with_numbers_before_anything_is_written(peer: PeerConfig, tmp_path: Path) -> None:
    reserve = 1 << 60
    with pytest.raises(backup.NoRoom, match=rf"has \d+ bytes free; a backup takes about \d+, and {reserve} are kept"):
        backup.create(limited(peer, disk_reserve_bytes=reserve), tmp_path / "registry.backup")
    assert left_in(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile_ends_the_backup_and_keeps_the_reserve(
    peer: PeerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's numbers are the system's, but for a file that somebody else seems to write after the first look."""
    answers = iter([shutil.disk_usage(tmp_path)])
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr("raftreg.backup.shutil.disk_usage", lambda _path: next(answers, full))
    monkeypatch.setattr("raftreg.backup._ROOM_CHECK_BYTES", 100_000)
    with pytest.raises(backup.NoRoom, match="has 0 bytes free"):
        backup.create(limited(peer, disk_reserve_bytes=1), tmp_path / "registry.backup")
    assert left_in(tmp_path) == []


def test_a_backup_is_never_overwritten(peer: PeerConfig, file: Path, whole: bytes) -> None:
    with pytest.raises(BackupError, match="never overwritten"):
        backup.create(peer, file)
    assert file.read_bytes() == whole


def test_progress_goes_up_to_the_end_while_making_and_reading(peer: PeerConfig, tmp_path: Path) -> None:
    file = tmp_path / "registry.backup"
    told: list[tuple[int, int]] = []
    backup.create(peer, file, progress=lambda done, total: told.append((done, total)))
    reading: list[tuple[int, int]] = []
    label, _ = backup.verify(file, lambda done, total: reading.append((done, total)))
    assert isinstance(label, Label)
    for steps in (told, reading):
        assert steps == sorted(steps)
        assert len(steps) > 3
        assert steps[-1][0] == steps[-1][1] > 0


def test_a_bar_is_shown_to_a_terminal_alone_and_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with cli_progress.bar("reading x") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with cli_progress.bar("reading x") as progress:
        progress(1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading x" in err
