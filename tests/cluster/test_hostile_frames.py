"""Frames that no voter of ours would send: they are ignored, the process goes on, and its disk can still be opened.

A link is authenticated, so this is about a voter with a bug, not about strangers. What is well-formed and possible is
believed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from raftreg import transport
from raftreg.config import MIB
from raftreg.transport import NUMBER_MAX, is_well_formed
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, Cluster

CHECKSUM_OF_NOTHING = blake2b(digest_size=16).digest()
TYPES = {**transport._FIELDS, **transport._OWN_FIELDS}
OPTIONAL = {"serialized", "prevLogIdx", "prevLogTerm", "entries", "transmission", "data"} | {
    transport.ROUND,
    transport.CONFIRMED_AGE,
    transport.RECOVERING,
    transport.CLOCK,
}


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Iterator[Cluster]:
    """A leads, C follows, both have applied a value; B is the one that sends odd frames. In the end all still work."""
    made = running(make_cluster)
    yield made
    still_works(made)


def running(make_cluster: MakeCluster) -> Cluster:
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    cluster.propose("A", "before", [])
    cluster.settle()
    return cluster


def still_works(cluster: Cluster) -> None:
    assert not cluster.dead
    cluster.clock.now += A_HEARTBEAT_LATER
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    (leader,) = [name for name, node in cluster.nodes.items() if node.is_leader]
    acknowledged: list[str] = []
    cluster.propose(leader, "after", acknowledged)
    cluster.settle()
    assert acknowledged == ["after"]
    for name in cluster.names:
        assert cluster.values(name)[0] == "before"
        assert cluster.values(name)[-1] == "after"
        cluster.crash(name)
        cluster.start(name)
        assert cluster.values(name)[0] == "before"


def send(cluster: Cluster, frame: Any) -> None:
    """From B to the leader and to a follower, one turn each, through the codec."""
    for target in "AC":
        cluster.nodes[target].receive("B", msgpack.unpackb(msgpack.packb(frame), strict_map_key=False))
        cluster.turn(target)


def append(**fields: Any) -> dict[str, Any]:
    return {"type": "append_entries", "term": 99, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0, **fields}


def chunk(serialized: Any, term: int = 1) -> dict[str, Any]:
    return {"type": "append_entries", "term": term, "commit_index": 1, "serialized": serialized}


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"type": None},
        {"type": []},
        {"type": {}},
        {"type": "append_entries"},
        {"type": "apply_command", "command": b"\0x"},
        {"type": "append_entries", "transmission": "process", "data": b"x"},
        append(entries=7),
        append(entries=[7]),
        append(entries=[[b"\0x", 2, "t"]]),
        append(entries=[{"a": 1, "b": 2, "c": 3}]),
        append(entries=[["text", 2, 1]]),
        append(entries=[[b"", 2, 1]]),
        append(entries=[[b"\0x", 3, 1]]),
        append(entries=[[b"\0x", 2, 1, 0]]),
        append(entries=[], term=-1, prevLogIdx=-1),
        append(entries=[], term=NUMBER_MAX),
        append(entries=[], term=(1 << 64) - 1),
        append(entries=[], commit_index="far"),
        append(entries=[], prevLogTerm=None),
        {"type": "append_entries", "term": 99, "commit_index": 1},
        {"type": "positions", "positions": {"C": 7}},
        {"type": "positions", "positions": {"C": [1, "x", "y"]}},
        {"type": "positions", "positions": [1]},
        {"type": "positions", "positions": {7: [1, 2, "z"]}},
        {"type": "caught_up", "term": 1, "index": None},
        {"type": "storage", "refusal": 7},
        {"type": "storage"},
        {"type": "next_node_idx", "next_node_idx": -5, "reset": True, "success": True, "_term": 1},
        {"type": "next_node_idx", "next_node_idx": NUMBER_MAX, "reset": True, "success": False, "_term": 1},
        {"type": "next_node_idx", "next_node_idx": 2, "reset": 1, "success": None, "_term": 1},
        {"type": "next_node_idx", "next_node_idx": 2, "reset": False, "success": True},
        {"type": "read_index", "id": -1},
        {"type": "read_index_reply", "id": 1, "index": "far"},
        {"type": "read_index_reply", "id": 1},
        {"type": "request_vote", "term": 2, "last_log_index": 9},
        {"type": "response_vote", "term": "now"},
        {"type": "pre_vote", "term": 2.0, "last_log_index": 9, "last_log_term": 1},
        {"type": "term", "term": (1 << 64) - 1},
        {"type": "timeout_now"},
    ],
    ids=str,
)
def test_an_odd_frame_changes_nothing(cluster: Cluster, frame: dict[str, Any]) -> None:
    before = {name: (node.term, node.role, cluster.log(name)) for name, node in cluster.nodes.items()}
    send(cluster, frame)
    assert before == {name: (node.term, node.role, cluster.log(name)) for name, node in cluster.nodes.items()}


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "caught_up", "term": 1, "index": True},
        {"type": "storage", "refusal": None},
        {"type": "next_node_idx", "next_node_idx": 0, "reset": True, "success": True, "_term": 1, "_round": "r"},
        {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True, "_term": 1, "_clock": None},
        {"type": "positions", "positions": {"C": [1, -1, "z"], "Z": [9, 9, "z"]}},
        {"type": "read_index_reply", "id": 4711, "index": 3},
        {"type": "response_vote", "term": 1},
        {"type": "pre_vote_granted", "term": 2},
        {"type": "term", "term": 1000},
        {"type": "timeout_now", "term": 1},
    ],
    ids=str,
)
def test_a_well_formed_frame_out_of_place_stops_nobody(cluster: Cluster, frame: dict[str, Any]) -> None:
    send(cluster, frame)


def test_nobody_acknowledges_more_than_the_leader_has(cluster: Cluster) -> None:
    """Counted, it would commit entries that no majority holds."""
    last = cluster.nodes["A"].journal.last_index
    send(cluster, {"type": "next_node_idx", "next_node_idx": last + 5, "reset": False, "success": True, "_term": 1})
    assert cluster.nodes["A"].match_index("B") == last
    cluster.isolate("B")
    cluster.isolate("C")
    acknowledged: list[str] = []
    cluster.propose("A", "alone", acknowledged)
    cluster.pump("A", rounds=4, step=A_HEARTBEAT_LATER)
    assert acknowledged == []
    cluster.connect_all()


# -- snapshots ----------------------------------------------------------------------------------------------------


def body(*parts: Any) -> list[Any]:
    packed = msgpack.packb(parts)
    return [packed, zlib.crc32(packed)]


def parts(*bodies: list[Any]) -> list[dict[str, Any]]:
    """A snapshot in chunks with right sequence numbers and checksums, whatever they contain."""
    last = len(bodies) - 1
    return [
        chunk([[b"id", number, crc, packed], number == 0, number == last])
        for number, (packed, crc) in enumerate(bodies)
    ]


def rows(*lists: Any) -> list[Any]:
    return body("rows", zstandard.compress(b"".join(map(msgpack.packb, lists))))


HEADER = body("header", [b"\0x", 50, 1], [b"\0w", 49, 1])
BOMB = bytes(64 * MIB)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False)


@pytest.mark.parametrize(
    "frames",
    [
        [chunk(7)],
        [chunk([])],
        [chunk([[b"id", 0, 0, "text"], True, False])],
        [chunk([[b"id", 0, 1], True, False])],
        [chunk([[b"id", 0, 0, b"x"], 1, 0])],
        [chunk([[b"id", 0, 17, b"wrong checksum"], True, False])],
        [chunk([[b"id", -1, zlib.crc32(b"x"), b"x"], True, True])],
        [chunk([[b"id", 0, zlib.crc32(b""), b""], True, False])],
        [chunk([[b"id", 0, zlib.crc32(b"\xc1"), b"\xc1"], True, False])],
        parts(body(), body()),
        parts(body("header"), body("trailer", 0, b"")),
        parts(body("header", 7, 8), body("trailer", 0, b"")),
        parts(body("header", [b"x", "far", 1], [b"x", 1, 1]), body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(body("header", [b"x"], [b"x"]), body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(HEADER, body("rows", 7), body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(HEADER, body("rows"), body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(HEADER, body("rows", [[b"key", b"value"]]), body("trailer", 1, b"")),
        parts(HEADER, body("rows", b"not compressed"), body("trailer", 0, b"")),
        parts(HEADER, body("rows", zstandard.compress(BOMB)), body("trailer", 0, b"")),
        parts(HEADER, body("rows", UNSIZED.compress(BOMB)), body("trailer", 0, b"")),
        parts(HEADER, body("rows", zstandard.compress(msgpack.packb([[b"key", b"v"]])[:-1])), body("trailer", 0, b"")),
        parts(HEADER, rows(7), body("trailer", 0, b"")),
        parts(HEADER, rows({b"key": b"value"}), body("trailer", 0, b"")),
        parts(HEADER, body("trailer", 1, CHECKSUM_OF_NOTHING)),
        parts(HEADER, body("trailer", 0, b"wrong")),
        parts(HEADER, body("trailer", 0)),
        parts(HEADER, body("neither", 0)),
        parts(HEADER, HEADER),
    ],
    ids=lambda frames: f"{len(frames)}-chunks",
)
def test_a_malformed_snapshot_is_refused(cluster: Cluster, frames: list[dict[str, Any]]) -> None:
    """C stays as it is, and takes the next good one."""
    take_from_b(cluster, frames)
    assert not cluster.dead
    assert cluster.nodes["C"].snapshots.installed == 0
    assert cluster.nodes["C"].store.generation == 1
    assert cluster.values("C") == ["before"]


@pytest.mark.parametrize(
    "frames",
    [
        parts(HEADER, rows([[1, 2]]), body("trailer", 1, b"")),
        parts(HEADER, rows([[b"key"]]), body("trailer", 1, b"")),
        parts(HEADER, rows([["text", b"value"]]), body("trailer", 1, b"")),
        parts(HEADER, rows([[b"b", b""], [b"a", b""]]), body("trailer", 2, b"")),
        parts(HEADER, rows([[b"", b"an empty key"]]), body("trailer", 1, b"")),
        parts(HEADER, rows([[b"k" * 600, b"too long a key"]]), body("trailer", 1, b"")),
        parts(HEADER, body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(body("header", [b"x", 50, "t"], [b"x", 49, 1]), body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(body("header", [7, 50, 1], [b"x", 49, 1]), body("trailer", 0, CHECKSUM_OF_NOTHING)),
        parts(body("header", [b"x", 50, 1], [b"x", 48, 1]), body("trailer", 0, CHECKSUM_OF_NOTHING)),
    ],
    ids=lambda frames: f"{len(frames)}-chunks",
)
def test_a_snapshot_that_cannot_be_stored_is_never_installed(
    make_cluster: MakeCluster, frames: list[dict[str, Any]]
) -> None:
    """It may end the process, as anything that cannot be written does; on the disk is what was there before."""
    cluster = running(make_cluster)
    take_from_b(cluster, frames)
    if "C" in cluster.nodes:
        cluster.crash("C")
    follower = cluster.start("C")
    assert follower.store.generation == 1
    assert cluster.values("C") == ["before"]
    cluster.dead.clear()
    cluster.connect_all()
    still_works(cluster)


def test_a_malformed_snapshot_has_chunks_that_would_be_taken_otherwise(cluster: Cluster) -> None:
    """The header that the refused ones begin with opens an installation, so that it was the rest that was refused."""
    take_from_b(cluster, parts(HEADER, rows([[b"key", b"value"]]), body("trailer", 2, b""))[:2])
    assert cluster.nodes["C"].snapshots.receiving
    assert cluster.nodes["C"].store.installing_view().get(b"key") == b"value"


def take_from_b(cluster: Cluster, frames: list[dict[str, Any]]) -> None:
    """C takes the chunks from B as if B were the leader of the term."""
    for frame in frames:
        if "C" in cluster.nodes:
            cluster.nodes["C"].receive("B", msgpack.unpackb(msgpack.packb(frame)))
            cluster.turn("C")


# -- anything at all ----------------------------------------------------------------------------------------------

NAMES = st.sampled_from([*TYPES, "ping", "hello", "process_start", "\0"])
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 50, 1 << 40, NUMBER_MAX, (1 << 64) - 1])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=3), st.binary(max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted({field for fields in TYPES.values() for field in fields} | OPTIONAL))


@st.composite
def odd_frames(draw: st.DrawFn) -> dict[str, Any]:
    """A type with most of its fields, each of some value, and fields of other types; never a whole Raft message."""
    kind = draw(NAMES)
    fields = {name: draw(VALUES) for name in TYPES.get(kind, {}) if draw(st.integers(0, 4))}
    frame = {**draw(st.dictionaries(FIELDS, VALUES, max_size=3)), **fields, "type": kind}
    assume(not is_well_formed(frame))
    return frame


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(odd_frames() | st.dictionaries(FIELDS, VALUES, max_size=3), max_size=4))
def test_no_frame_of_any_shape_stops_a_voter_or_reaches_its_log(cluster: Cluster, frames: list[dict[str, Any]]) -> None:
    logs = {name: cluster.log(name) for name in "AC"}
    for frame in frames:
        send(cluster, frame)
    assert not cluster.dead
    assert {name: cluster.log(name) for name in "AC"} == logs
