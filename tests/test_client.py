"""The client library against real peers: fail-over, leader hints, deadlines, and what it sends twice."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raftreg import errors, wire
from raftreg.client import Client, new_key
from tests.registry import Registry, free_ports, registry

UUID = "0b1c2d3e-0000-4000-8000-00000000000a"
SESSION = "5e551017-0000-4000-8000-000000000001"


def first_asks(client: Client, url: str) -> None:
    """Which endpoint comes first is drawn at random; here it is the one to be tested."""
    client.endpoints.preferred = next(endpoint for endpoint in client.endpoints if endpoint.url == url)


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Registry]:
    """One peer without TLS, so that tests can stand in the middle."""
    async with registry(tmp_path, api_tls=False) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def server(serve: object) -> AsyncIterator[str]:
    """A TCP server of the test's own; its URL."""
    listener = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


class Swallower:
    """A link to `url` on which requests pass and answers are lost."""

    def __init__(self, url: str) -> None:
        host, self.port = url.removeprefix("http://").split(":")
        self.host, self.passed = host, 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection(self.host, int(self.port))
        onward.write(await reader.read(65_536))
        await onward_reader.read(1)
        self.passed += 1
        onward.close()
        writer.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts and never answers, like a peer behind a link that drops everything."""
    await reader.read()
    writer.close()


async def test_an_endpoint_that_refuses_connections_costs_almost_nothing(plain: Registry) -> None:
    dead = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    for _ in range(5):
        async with Client([*dead, plain.url("a")]) as client:
            first_asks(client, dead[0])
            started = time.monotonic()
            await client.allocate_ids(1)
            assert time.monotonic() - started < 0.9


async def test_an_endpoint_that_never_answers_is_left_within_a_second_and_avoided_afterwards(plain: Registry) -> None:
    async with server(silent) as black_hole, Client([black_hole, plain.url("a")]) as client:
        first_asks(client, black_hole)
        for ask in (client.status, client.allocate_ids, client.list_images):
            started = time.monotonic()
            await ask()
            assert time.monotonic() - started < 1.5
        assert client.endpoints.preferred.url == plain.url("a")
        started = time.monotonic()
        await client.status()
        assert time.monotonic() - started < 0.5


async def test_a_write_with_a_key_is_repeated_after_a_lost_answer_and_happens_once(plain: Registry) -> None:
    swallow = Swallower(plain.url("a"))
    async with server(swallow) as lossy, Client([lossy, plain.url("a")]) as client, Client([plain.url("a")]) as sure:
        before = (await sure.allocate_ids(1))[1]
        for expected in range(before + 1, before + 6):
            first_asks(client, lossy)
            client.endpoints.preferred.unhealthy_until = 0.0
            assert await client.allocate_ids(1) == (expected, expected)
        assert swallow.passed == 5


async def test_a_write_without_a_key_is_sent_once_and_its_unknown_outcome_is_said(plain: Registry) -> None:
    swallow = Swallower(plain.url("a"))
    async with server(swallow) as lossy, Client([lossy]) as client, Client([plain.url("a")]) as sure:
        before = (await sure.allocate_ids(1))[1]
        with pytest.raises(errors.OutcomeUnknown) as unknown:
            await client.request("POST", "ids", body={"count": 1})
        assert not unknown.value.definite
        assert swallow.passed == 1
        assert await sure.allocate_ids(1) == (before + 2, before + 2), "it had happened, once"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
async def test_a_write_lost_on_a_kept_connection_is_never_called_definite(method: str) -> None:
    """The server takes it and dies: a second attempt which cannot connect says nothing about the first."""
    seen: list[bytes] = []

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        listener.close()
        writer.transport.abort()

    listener = await asyncio.start_server(dies, "127.0.0.1", 0)
    async with Client([f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"], deadline_s=1.0) as client:
        await client.status()
        with pytest.raises(errors.Indefinite) as lost:
            await client.request(method, "zones/ams", key=new_key())
        assert not lost.value.definite
        assert len(seen) == 1
        assert seen[0].startswith(method.encode())


async def test_what_was_never_sent_is_a_definite_failure_within_the_deadline() -> None:
    dead = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    async with Client(dead, deadline_s=0.5) as client:
        started = time.monotonic()
        with pytest.raises(errors.Unreachable, match="Connection refused") as unreachable:
            await client.allocate_ids(1)
        assert unreachable.value.definite
        assert time.monotonic() - started < 1.0


async def test_a_keyed_write_whose_answers_all_got_lost_is_unknown_and_names_its_key(plain: Registry) -> None:
    async with server(silent) as black_hole, Client([black_hole], deadline_s=1.0, attempt_s=0.2) as client:
        key = new_key()
        with pytest.raises(errors.OutcomeUnknown) as unknown:
            await client.allocate_ids(1, key=key)
        assert (unknown.value.details["key"], unknown.value.definite) == (key, False)


async def test_something_that_is_no_registry_is_not_believed() -> None:
    async def teapot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 418 no\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n<p>")
        writer.close()

    async with server(teapot) as url, Client([url], deadline_s=0.3) as client:
        with pytest.raises(errors.RegistryError, match="418"):
            await client.status()


async def test_writes_go_on_while_the_leader_changes_and_the_client_follows_it(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
        longest, last = 0.0, (await client.allocate_ids(1))[1]
        for _ in range(3):
            leader = await cluster.leader()
            await client.allocate_ids(1)
            stopping = asyncio.create_task(cluster.stop(leader))
            while not stopping.done() or last % 20:
                started = time.monotonic()
                first, _ = await client.allocate_ids(1)
                longest = max(longest, time.monotonic() - started)
                assert first > last, "an ID was given twice"
                last = first
            await cluster.start(leader)
        assert longest < 2.5
        leader = await cluster.leader()
        await client.allocate_ids(1)
        await client.allocate_ids(1)
        assert client.endpoints.preferred.name == leader


async def test_an_image_is_named_by_number_uuid_or_both_and_both_must_fit(plain: Registry) -> None:
    async with Client([plain.url("a")]) as client:
        image = await client.create_image(uuid=UUID, attributes={"name": "x"})
        other = await client.create_image(attributes={"name": "y"})
        for ref in (image["number"], UUID, {"number": image["number"], "uuid": UUID}):
            assert await client.get_image(ref) == image
        with pytest.raises(errors.BadRequest) as mismatch:
            await client.get_image({"number": other["number"], "uuid": UUID})
        assert mismatch.value.code == "image_mismatch"
        updated = await client.update_image(UUID, {"name": "z"}, base_version=1)
        with pytest.raises(errors.Conflict) as conflict:
            await client.update_image(UUID, {"name": "w"}, base_version=1)
        assert conflict.value.details["image"] == updated
        await client.delete_image({"number": image["number"], "uuid": UUID}, base_version=2)
        with pytest.raises(errors.ImageDeleted):
            await client.get_image(UUID)


async def test_a_gateway_registers_opens_a_session_takes_a_block_and_drains(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.client("ams-1") as client:
        await client.register_zone("ams", endpoint="https://ams:1")
        await client.register_gateway("ams", "ams-1", "https://ams:2")
        assert (await client.heartbeat("ams", "ams-1"))["live"]
        assert (await client.zones())["ams"]["live"]
        opened = await client.open_session(
            gateway="ams-1", zone="ams", session=SESSION, highest_sequence=0, acked_sequence=0,
            acked_hash=wire.CHAIN_START,
        )  # fmt: skip
        assert (opened["last_sequence"], opened["last_hash"]) == (0, wire.CHAIN_START)
        block = await client.grant_block(gateway="ams-1", session=SESSION, size=100, token=opened["token"])
        assert block["last"] - block["first"] == 99
        actor = {"zone": "ams", "gateway": "ams-1"}
        inner = {"op": "create_image", "uuid": UUID, "attributes": {}, "number": block["first"], "home_zone": "ams"}
        payload = wire.pack({**inner, "actor": actor})
        operation = {"sequence": 1, "previous_hash": wire.CHAIN_START, "payload": payload}
        (result,) = await client.session_operations(SESSION, [operation])
        assert result["ok"]["result"]["ok"]["number"] == block["first"]
        (replayed,) = await client.session_operations(SESSION, [operation])
        assert replayed["ok"]["result"] == result["ok"]["result"]
        with pytest.raises(errors.Forbidden):
            await client.heartbeat("fra", "fra-1")


async def test_atomic_batches_raise_and_loose_ones_tell_for_each_operation(plain: Registry) -> None:
    async with Client([plain.url("a")]) as client:
        good = {"op": "allocate_ids", "count": 1}
        bad = {"op": "delete_image", "image": {"number": 12_345}}
        results = await client.batch([good, bad])
        assert ("ok" in results[0], results[1]["error"]["code"]) == (True, "image_not_found")
        with pytest.raises(errors.AtomicRefused) as refused:
            await client.batch([good, bad], atomic=True)
        assert refused.value.details["cause"]["code"] == "image_not_found"


async def test_every_endpoint_tells_its_status_or_why_not(plain: Registry) -> None:
    (port,) = free_ports(1)
    async with Client([plain.url("a"), f"http://127.0.0.1:{port}"]) as client:
        answers = await client.peer_status(deadline_s=2.0)
        here, away = answers.values()
        assert isinstance(here, dict)
        assert here["name"] == "a"
        assert isinstance(away, errors.Unreachable)


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "a?b=c", "a#b", "a b", "ä", "..x", "%", "zones/x/heartbeat"])
async def test_a_name_never_becomes_another_path(plain: Registry, name: str) -> None:
    """What a path may not hold as it is reaches the registry as a part of the name: of a project, where every name is
    good, and elsewhere in the sentence that refuses it."""
    async with Client([plain.url("a")], deadline_s=5) as client:
        assert (await client.set_quota(name, images_max=3))["project"]["project"] == name
        assert (await client.project(name))["images_max"] == 3
        with pytest.raises(errors.BadRequest) as refused:
            await client.get_image(name)
        assert repr(name) in refused.value.message
        with pytest.raises(errors.NotFound) as unknown:
            await client.heartbeat(name, name)
        assert unknown.value.code == "zone_not_found"
        with pytest.raises(errors.NotFound) as missing:
            await client.zone(name)
        assert repr(name) in missing.value.message
        for call in (
            client.register_gateway(name, name, "https://x"),
            client.update_image(name, {"name": "x"}),
            client.delete_image(name),
            client.session_operations(name, [{"sequence": 1, "previous_hash": wire.CHAIN_START, "payload": b"x"}]),
        ):
            with pytest.raises(errors.RegistryError) as invalid:
                await call
            assert invalid.value.code in ("invalid", "session_unknown"), invalid.value


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_name_that_no_path_can_carry_is_refused_before_it_is_sent(name: str) -> None:
    async with Client(["http://127.0.0.1:1"]) as client:
        for call in (client.zone(name), client.project(name), client.get_image(name)):
            with pytest.raises(errors.BadRequest, match="is no name"):
                await call
