"""Image data are inspected on their way in: unsafe ones, and those of another format, are refused and leave nothing."""

import asyncio
import http.client
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import disks
from tests.gateway.running import running, until
from tests.gateway.test_imports import files, imported, last_message, method, no_bytes, stage
from tests.gateway.web_source import web_source
from zonegw.errors import BadRequest, ConfigError
from zonegw.inspection import Inspection
from zonegw.inspection_rules import InspectionRules, parse

OCTETS = {"Content-Type": "application/octet-stream"}
SAFE = {
    "qcow2": (disks.qcow2(), disks.GIB),
    "vmdk": (disks.vmdk(), disks.GIB),
    "vdi": (disks.vdi(), disks.GIB),
    "vhdx": (disks.vhdx(), disks.GIB),
    "vhd": (disks.dynamic_vhd(), disks.GIB),
    "iso": (disks.iso(), 2_048_000),
    "raw": (disks.partitioned(), 8704),
}
# What an image says, and what its data are.
DIFFERENT = [
    (declared, real) for declared in (*SAFE, "ami", "ploop") for real in SAFE
    if declared != real and (real, declared) not in (("raw", "ami"), ("raw", "ploop"))
]  # fmt: skip
UNSAFE = {
    "a backing file": ("qcow2", disks.qcow2(backing=True), "backing file"),
    "data in another file": ("qcow2", disks.qcow2(data_file=True), "another file"),
    "unknown features": ("qcow2", disks.qcow2(features=1 << 20), "features"),
    "a VMDK of an absolute path": ("vmdk", disks.vmdk(extent="/etc/passwd"), "descriptor"),
    "a VMDK of another kind": ("vmdk", disks.vmdk(kind="twoGbMaxExtentFlat"), "descriptor"),
    "a VMDK that is only a text": ("vmdk", disks.vmdk_text("/etc/passwd"), "descriptor"),
    "a VMDK of text behind a long comment": ("vmdk", disks.vmdk_text("/etc/passwd", comment_bytes=9000), "descriptor"),
    "a VMDK that is cut off": ("vmdk", disks.vmdk()[:600], "can't be read"),
    "a VHDX without a region table": ("vhdx", b"vhdxfile".ljust(300_000, b"\0"), "can't be read"),
    "a size that nobody can have": ("qcow2", disks.qcow2(size=(1 << 64) - 1), "how large"),
}


async def inspected(
    disk_format: str, data: bytes, *, container: str = "bare", piece: int = 65_536, rules: InspectionRules | None = None
) -> int | None:
    """The virtual size."""

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(data), piece):
            yield data[start : start + piece]

    image = {"disk_format": disk_format, "container_format": container}
    inspection = Inspection(rules or InspectionRules(), image)
    passed = b"".join([one async for one in inspection.of(body())])
    assert passed == data
    return inspection.virtual_size(len(data))


@pytest.mark.parametrize("piece", [100, 65_536, 4 << 20])
@pytest.mark.parametrize("disk_format", SAFE)
async def test_safe_data_pass_unchanged_in_whatever_pieces_and_tell_the_size_of_their_disk(
    disk_format: str, piece: int
) -> None:
    data, size = SAFE[disk_format]
    assert await inspected(disk_format, data, piece=piece) == size


@pytest.mark.parametrize("what", UNSAFE)
async def test_unsafe_data_are_refused_in_every_container_with_what_to_do(what: str) -> None:
    disk_format, data, said = UNSAFE[what]
    with pytest.raises(BadRequest, match=said):
        await inspected(disk_format, data)
    if said != "how large":
        with pytest.raises(BadRequest, match=said):
            await inspected(disk_format, data, container="ovf")


@pytest.mark.parametrize(("declared", "real"), DIFFERENT)
async def test_data_of_another_format_than_their_image_says_are_refused_unless_the_operator_allows_it(
    declared: str, real: str
) -> None:
    data, _ = SAFE[real]
    with pytest.raises(BadRequest, match=rf"The data are {real}( .*)?, but|The data are not {declared}"):
        await inspected(declared, data)
    size = await inspected(declared, data, rules=InspectionRules(allow_mismatch=True))
    assert size == (len(data) if declared in ("raw", "ami") else None)


async def test_a_vhd_of_fixed_size_is_known_by_its_footer() -> None:
    data = disks.fixed_vhd(disks.partitioned())
    assert await inspected("vhd", data) == len(data) - 512
    with pytest.raises(BadRequest, match="not vhd"):
        await inspected("vhd", data[:-1])


@pytest.mark.parametrize("piece", [100_000, 4 << 20])
async def test_a_vmdk_with_a_footer_is_judged_by_both_its_ends(piece: int) -> None:
    assert await inspected("vmdk", disks.vmdk_stream(), piece=piece) == disks.GIB
    with pytest.raises(BadRequest, match="header and footer do not agree"):
        await inspected("vmdk", disks.vmdk_stream(descriptor_sectors=21), piece=piece)


@pytest.mark.parametrize("disk_format", ["raw", "ami", "vhd"])
async def test_a_raw_disk_may_be_encrypted_and_a_known_format_that_nobody_supports_is_refused(disk_format: str) -> None:
    data = disks.luks() if disk_format != "vhd" else disks.fixed_vhd(disks.luks())
    assert await inspected(disk_format, data) == 8192
    with pytest.raises(BadRequest, match="qed"):
        await inspected(disk_format, disks.qed(), rules=InspectionRules(allow_mismatch=True))


async def test_data_that_are_two_formats_at_once_are_refused() -> None:
    data = bytearray(disks.iso())
    data[:1024] = disks.qcow2()[:1024]
    for declared in ("iso", "qcow2"):
        with pytest.raises(BadRequest, match="The data are"):
            await inspected(declared, bytes(data))


async def test_an_iso_that_boots_from_a_stick_is_an_iso() -> None:
    data = bytearray(disks.iso())
    data[:512] = disks.partitioned()[:512]
    assert await inspected("iso", bytes(data)) == 2_048_000


async def test_no_data_at_all_are_of_any_format_for_nova_makes_images_active_so() -> None:
    assert await inspected("qcow2", b"") is None
    assert await inspected("raw", b"") == 0


async def test_a_format_can_be_left_to_whoever_uploads() -> None:
    rules = parse({"off": ["qcow2"]})
    assert await inspected("qcow2", b"anything", rules=rules) is None
    with pytest.raises(BadRequest, match="not vmdk"):
        await inspected("vmdk", b"anything", rules=rules)


@pytest.mark.parametrize("table", [{"off": ["qcow3"]}, {"off": "qcow2"}, {"allow_mismatch": 1}, {"on": ["raw"]}])
def test_switches_that_mean_nothing_are_refused_at_the_start(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"inspection\."):
        parse(table)


# Through the gateway.


async def test_a_refused_upload_leaves_nothing_and_the_same_image_takes_good_data_then(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", disk_format="qcow2", container_format="bare")
        for data, said in ((disks.qcow2(backing=True), "backing file"), (disks.vdi(), "set disk_format")):
            async with zone.ask("PUT", f"{image['self']}/file", data=data, headers=OCTETS) as answer:
                assert answer.status == 400
                assert said in await answer.text()
            await until(lambda: not files(zone), "the bytes to go")
            assert zone.gateway.store.read().count("uploads") == zone.gateway.data.used_bytes == 0
            assert (await zone.get(image["self"]))["status"] == "queued"
        await zone.upload(image, disks.qcow2())
        shown = await zone.get(image["self"])
        assert (shown["status"], shown["virtual_size"]) == ("active", disks.GIB)


async def test_what_is_refused_is_refused_before_all_of_it_came(tmp_path: Path) -> None:
    """The client never ends its upload."""
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", disk_format="raw", container_format="bare")
        never = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield disks.qcow2().ljust(2 << 20, b"\0")
            await never.wait()

        assert await zone.status("PUT", f"{image['self']}/file", data=body(), headers=OCTETS) == 400
        assert not files(zone)


async def test_a_client_that_sends_all_before_it_listens_hears_why_its_data_were_refused(tmp_path: Path) -> None:
    """As most do; a connection that was closed on it would tell it nothing."""
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", disk_format="raw", container_format="bare")

        def put() -> tuple[int, str]:
            client = http.client.HTTPConnection(*zone.gateway.address, timeout=60)
            headers = OCTETS | {"X-Auth-Token": zone.tokens["alice"]}
            client.request("PUT", f"{image['self']}/file", disks.qcow2().ljust(12 << 20, b"\0"), headers)
            with client.getresponse() as answer:
                return answer.status, answer.read().decode()

        status, said = await asyncio.to_thread(put)
        assert (status, "set disk_format" in said) == (400, True)


async def test_an_image_of_v1_is_not_made_of_unsafe_data(tmp_path: Path) -> None:
    headers = OCTETS | {"x-image-meta-disk_format": "vmdk", "x-image-meta-container_format": "bare"}
    async with running(tmp_path) as zone:
        seed = zone.gateway
        with seed.store.transaction() as txn:
            seed.ids.add(txn, 1, 10, 1)
        bad, good = disks.vmdk(extent="/etc/shadow"), disks.vmdk()
        async with zone.ask("POST", "/v1/images", data=bad, headers=headers | {"x-image-meta-name": "n"}) as answer:
            assert (answer.status, "descriptor" in await answer.text()) == (400, True)
        assert await zone.names() == []
        async with zone.ask("POST", "/v1/images", data=good, headers=headers | {"x-image-meta-name": "n"}) as answer:
            assert answer.status == 201, await answer.text()
        [image] = (await zone.get("/v2/images"))["images"]
        assert image["virtual_size"] == disks.GIB


@pytest.mark.parametrize("safe", [True, False])
async def test_staged_and_fetched_data_are_inspected_before_they_are_an_images(tmp_path: Path, safe: bool) -> None:
    data = disks.qcow2(backing=not safe)
    async with web_source(data) as source, running(tmp_path, more=source.allowed()) as zone:
        for name in ("glance-direct", "web-download"):
            image = await zone.create(name=name, disk_format="qcow2", container_format="bare")
            if name == "glance-direct":
                assert await stage(zone, image, data) == 204
            body = method(name, **({"uri": source.url("/image")} if name == "web-download" else {}))
            shown = await imported(zone, image, body)
            if safe:
                assert (shown["status"], shown["virtual_size"]) == ("active", disks.GIB)
                assert await zone.data(image) == data
            else:
                assert (shown["status"], shown["os_glance_failed_import"]) == ("queued", "fra")
                assert "backing file" in await last_message(zone, image)
                await no_bytes(zone)


async def test_the_formats_of_an_image_with_data_stay_what_these_were_checked_as(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(b"x")
        for name, value in (("disk_format", "qcow2"), ("container_format", "ovf")):
            assert await zone.patch(image, {"op": "replace", "path": f"/{name}", "value": value}) == 403
            assert await zone.patch(image, {"op": "replace", "path": f"/{name}", "value": image[name]}) == 200
