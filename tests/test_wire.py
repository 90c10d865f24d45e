"""Encodings, cursors, the hash chain, and errors as they cross the wire."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftreg import errors, wire
from raftreg.errors import BadRequest

_WHOLE = st.integers(min_value=0, max_value=2**63 - 1)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(epoch=_WHOLE, revision=_WHOLE)
def test_a_cursor_survives_its_text(epoch: int, revision: int) -> None:
    cursor = wire.Cursor(epoch, revision)
    assert wire.parse_cursor(str(cursor)) == cursor


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "1.2.3", "-1.2", "1.-2", "1 .2", "a.b", "١.٢", "1." + "9" * 30])
def test_what_is_no_cursor_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRequest, match=r"1\.4711"):
        wire.parse_cursor(text)


def test_the_hash_chain_is_blake2b_of_hash_and_payload() -> None:
    first = wire.chain_hash(wire.CHAIN_START, b"one")
    assert first == hashlib.blake2b(bytes(16) + b"one", digest_size=16).digest()
    assert wire.chain_hash(first, b"two") != wire.chain_hash(wire.CHAIN_START, b"two")
    assert len(first) == 16


@given(_VALUES)
def test_both_encodings_give_back_what_was_put_in(value: Any) -> None:
    assert wire.unpack(wire.pack(value)) == value
    assert wire.from_json(wire.to_json(value)) == value


@pytest.mark.parametrize("as_msgpack", [False, True])
@given(rows=st.lists(_VALUES, max_size=5), rest=st.dictionaries(st.text(min_size=1), _VALUES, max_size=3))
def test_a_page_of_encoded_rows_is_the_same_document_as_encoding_it_whole(
    as_msgpack: bool, rows: list[Any], rest: dict[str, Any]
) -> None:
    rest.pop("rows", None)
    encoded = [wire.encode(row, as_msgpack=as_msgpack) for row in rows]
    page = wire.encode_page("rows", encoded, rest, as_msgpack=as_msgpack)
    assert (wire.unpack(page) if as_msgpack else wire.from_json(page)) == {"rows": rows, **rest}


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xa2\xff\xff", b"\x81\x01\x02", b"\x91" * 5000]
)
def test_what_is_not_one_msgpack_document_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        wire.decode(data, wire.MSGPACK)
    assert refused.value.code == "bad_msgpack"


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":1}x', b"\xff", b"NaN", b"[" * 5000])
def test_what_is_not_one_json_document_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        wire.decode(data, "application/json; charset=utf-8")
    assert refused.value.code == "bad_json"


def test_bytes_are_hexadecimal_in_json_and_read_back() -> None:
    document = wire.from_json(wire.to_json({"hash": b"\x00\xff"}))
    assert document == {"hash": "00ff"}
    assert wire.as_bytes(document["hash"], "hash") == b"\x00\xff" == wire.as_bytes(b"\x00\xff", "hash")
    for wrong in ("0g", 7, None):
        with pytest.raises(BadRequest, match="hash must be bytes"):
            wire.as_bytes(wrong, "hash")


def _kinds(root: type[errors.RegistryError]) -> list[type[errors.RegistryError]]:
    return [root, *(kind for branch in root.__subclasses__() for kind in _kinds(branch))]


KINDS = [kind for kind in _kinds(errors.RegistryError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_comes_back_from_the_wire_as_itself(kind: type[errors.RegistryError]) -> None:
    error = errors.NotLeader("b", "not here") if kind is errors.NotLeader else kind("a reason", extra=[1])
    fields = orjson.loads(wire.to_json(error.to_wire()))["error"]
    back = errors.from_fields(fields, error.http_status)
    assert type(back) is kind
    assert (back.code, back.message, back.definite, back.details) == (
        error.code, error.message, error.definite, error.details,
    )  # fmt: skip


def test_only_failures_without_an_answer_are_indefinite() -> None:
    indefinite = {kind.__name__ for kind in KINDS if not kind.definite}
    assert indefinite == {"Indefinite", "OutcomeUnknown", "Unreachable", "InternalError"}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid", 400), ("image_not_found", 404), ("image_deleted", 404), ("conflict", 409), ("uuid_taken", 409),
        ("number_taken", 409), ("protected", 403), ("sequence_gap", 409), ("session_diverged", 409),
        ("session_fenced", 409), ("home_zone_away", 503), ("a_code_of_a_later_release", 409),
    ],
)  # fmt: skip
def test_a_refusal_of_apply_has_the_documented_status(code: str, status: int) -> None:
    fields = {"code": code, "message": "no", "version": 3}
    assert errors.status_of(fields) == status
    refusal = errors.refusal(fields)
    assert (refusal.http_status, refusal.code, refusal.definite, refusal.details) == (
        status,
        code,
        True,
        {"version": 3},
    )


def test_an_unknown_code_gets_the_class_of_its_status() -> None:
    assert isinstance(errors.from_fields({"code": "new", "message": ""}, 413), errors.TooLarge)
    assert not errors.from_fields({"code": "new", "message": ""}, 418).definite
