"""Beginnings of image data in the formats that an upload may have: as much of them as tells what they are."""

import struct
from uuid import UUID

GIB = 1 << 30
SECTOR = 512


def qcow2(size: int = GIB, *, backing: bool = False, data_file: bool = False, features: int = 0) -> bytes:
    """A header of version 3, and one empty cluster behind it."""
    features |= 4 if data_file else 0
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 1024 if backing else 0, 9 if backing else 0, 16, size,
                         0, 1, 65536, 131072, 1, 0, 0, features, 0, 0, 4, 104)  # fmt: skip
    return header.ljust(1024, b"\0") + b"/etc/host".ljust(196_608 - 1024, b"\0")


def vmdk(size: int = GIB, extent: str = "disk.vmdk", kind: str = "monolithicSparse") -> bytes:
    """A sparse header with the descriptor in it."""
    text = f'# Disk DescriptorFile\nversion=1\ncreateType="{kind}"\nRW {size // SECTOR} SPARSE "{extent}"\n'
    header = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 3, size // SECTOR, 128, 1, 20, 512, 21, 26)
    return header.ljust(SECTOR, b"\0") + text.encode().ljust(20 * SECTOR, b"\0") + bytes(65_536)


def vmdk_stream(size: int = GIB, *, descriptor_sectors: int = 20) -> bytes:
    """One that was written without going back: the footer, which names its descriptor again, has the last word."""
    text = f'# Disk DescriptorFile\nversion=1\ncreateType="streamOptimized"\nRW {size // SECTOR} SPARSE "disk.vmdk"\n'

    def header(sectors: int, directory: int) -> bytes:
        fields = b"KDMV", 3, 3, size // SECTOR, 128, 1, sectors, 512, 0, directory
        return struct.pack("<4sIIQQQQIQQ", *fields).ljust(SECTOR, b"\0")

    marker = struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")
    beginning = header(20, (1 << 64) - 1) + text.encode().ljust(20 * SECTOR, b"\0") + bytes(3 << 20)
    return beginning + marker + header(descriptor_sectors, 4096) + bytes(SECTOR)


def vmdk_text(extent: str, *, comment_bytes: int = 0) -> bytes:
    """A descriptor alone, whose data are in another file."""
    comment = "# long\n" * (comment_bytes // 7)
    return f'# Disk DescriptorFile\nversion=1\n{comment}createType="monolithicFlat"\nRW 8 FLAT "{extent}" 0\n'.encode()


def vdi(size: int = GIB) -> bytes:
    header = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + struct.pack("<I", 0xBEDA107F)
    return header.ljust(0x170, b"\0") + struct.pack("<Q", size) + bytes(4096)


def fixed_vhd(data: bytes) -> bytes:
    """A raw disk with the footer that makes it a VHD."""
    footer = b"conectix".ljust(40, b"\0") + struct.pack(">QQ", len(data), len(data))
    return data + footer.ljust(SECTOR, b"\0")


def dynamic_vhd(size: int = GIB) -> bytes:
    """The footer, and a copy of it in front."""
    footer = b"conectix".ljust(40, b"\0") + struct.pack(">QQ", size, size)
    return footer.ljust(SECTOR, b"\0") + bytes(65_536) + footer.ljust(SECTOR, b"\0")


def vhdx(size: int = GIB) -> bytes:
    """Region table at 192 KiB, metadata at 2 MiB, and the disk's size 64 KiB behind that, as tools lay it out."""
    metadata, item = 2 << 20, 65_536
    data = bytearray(3 << 20)
    data[:8] = b"vhdxfile"
    region = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
    data[196_608:196_624] = struct.pack("<4sIII", b"regi", 0, 1, 0)
    data[196_624:196_656] = region + struct.pack("<QII", metadata, 1 << 20, 1)
    data[metadata : metadata + 12] = struct.pack("<8sHH", b"metadata", 0, 1)
    entry = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le + struct.pack("<IIII", item, 8, 6, 0)
    data[metadata + 32 : metadata + 64] = entry
    data[metadata + item : metadata + item + 8] = struct.pack("<Q", size)
    return bytes(data)


def iso(blocks: int = 1000) -> bytes:
    volume = bytearray(2048)
    volume[:6] = b"\x01CD001"
    volume[80:84] = struct.pack("<L", blocks)
    volume[128:130] = struct.pack("<H", 2048)
    return bytes(32_768) + bytes(volume) + bytes(2048)


def partitioned(data: bytes = b"") -> bytes:
    """A disk with a partition table."""
    entry = struct.pack("<B3BB3BII", 0x80, 0, 2, 0, 0x83, 0, 0, 0, 2048, 100)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + (data or bytes(8192))


def luks() -> bytes:
    """LUKS of version 2."""
    return b"LUKS\xba\xbe\x00\x02".ljust(8192, b"\0")


def qed() -> bytes:
    return b"QED\0".ljust(8192, b"\0")
