"""The OpenAPI document against the code and against the answers of a running registry.

Schemas are closed for the comparison: a field that an answer has and the document doesn't is a failure too, although
clients must ignore what they don't know.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from jsonschema import ValidationError

from raftreg import (
    api,
    api_changes,
    api_deletions,
    api_images,
    api_leader,
    api_level,
    api_openapi,
    api_projects,
    api_zones,
    commands,
    errors,
    feed_filter,
    listing,
    wire,
)
from tests.openapi_document import Document
from tests.registry import Answer, Http, registry
from tests.test_api import BAD, SESSION, UUID, image, session

OPENAPI = Document(api_openapi.document())
DOCUMENT = OPENAPI.raw
operations, resolved, parameters, check = OPENAPI.operations, OPENAPI.resolved, OPENAPI.parameters, OPENAPI.check
SOURCES = Path(api.__file__).parent
NEVER_SENT = {
    # General classes of the tree, what clients say themselves, and what the API never asks for.
    "error", "gone", "indefinite", "not_found", "unreachable", "epoch_passed", "level_skipped",
}  # fmt: skip


# -- the document by itself ---------------------------------------------------------------------------------------


def test_the_document_is_openapi_3_1_and_every_reference_leads_somewhere() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert {"title", "version"} <= set(DOCUMENT["info"])
    # The certificate is named as a requirement; a wrong method belongs to no operation.
    unnamed = {"#/components/securitySchemes/certificate", "#/components/responses/MethodNotAllowed"}
    assert OPENAPI.components_that_nobody_names() == unnamed


def test_every_schema_is_json_schema() -> None:
    OPENAPI.check_schemas()


def test_every_operation_is_named_once_and_says_what_it_does_and_answers() -> None:
    OPENAPI.check_operations()
    for operation in operations().values():
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", status)
            assert resolved(response)["description"]


def test_every_body_comes_in_json_and_msgpack_and_every_answer_says_which_state_it_is_from() -> None:
    only_one = {f"{wire.PREFIX}/openapi.json": {wire.JSON}, f"{wire.PREFIX}/changes": {wire.NDJSON, wire.MSGPACK}}
    for (method, path), operation in operations().items():
        if path == "/metrics" or method == "HEAD":
            continue
        for status, response in operation["responses"].items():
            answer = resolved(response)
            kinds = only_one.get(path, {wire.JSON, wire.MSGPACK}) if status == "200" else {wire.JSON, wire.MSGPACK}
            assert set(answer["content"]) == kinds, (method, path, status)
            assert len({json.dumps(content) for content in answer["content"].values()}) == 1
            assert set(answer["headers"]) >= STATE_HEADERS, (method, path, status)
        if "requestBody" in operation:
            assert set(operation["requestBody"]["content"]) == {wire.JSON, wire.MSGPACK}


STATE_HEADERS = {
    wire.HEADER_CLUSTER, wire.HEADER_PEER, wire.HEADER_EPOCH, wire.HEADER_REVISION, wire.HEADER_APPLIED,
    wire.HEADER_LEADER, wire.HEADER_STALENESS,
}  # fmt: skip


# -- the document and the code ------------------------------------------------------------------------------------


async def test_every_route_is_documented_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[web.Application] = []
    build = api.build_app

    def keeping(**services: Any) -> web.Application:
        built.append(build(**services))
        return built[-1]

    monkeypatch.setattr(api, "build_app", keeping)
    async with registry(tmp_path):
        routes = {(route.method, route.resource.canonical) for route in built[0].router.routes() if route.resource}
    assert routes == set(operations())


def string_constants(kinds: Mapping[str, int | str]) -> set[str]:
    """Strings that calls of these functions get in the registry's sources, at that position or by that keyword."""
    found = set()
    for file in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            where = kinds.get(name, kinds.get("*"))
            given = [keyword.value for keyword in node.keywords if keyword.arg == where]
            if isinstance(where, int) and len(node.args) > where:
                given = [node.args[where]]
            found |= {part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return found


def class_codes() -> set[str]:
    """The `code` of every class of errors, those outside of the errors module included."""

    def below(kind: type[errors.RegistryError]) -> set[str]:
        return {kind.code}.union(*(below(child) for child in kind.__subclasses__()))

    return below(errors.RegistryError)


def test_every_error_code_is_documented_and_no_other() -> None:
    raised = class_codes() | string_constants({"*": "code", "Refused": 0})
    assert raised >= NEVER_SENT
    assert set(enum("ErrorCode")) == raised - NEVER_SENT


def enum(name: str) -> list[str]:
    return [value for value in DOCUMENT["components"]["schemas"][name]["enum"] if value is not None]


def properties(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]["properties"]
    return found


def test_enumerations_are_those_of_the_code() -> None:
    assert tuple(enum("Visibility")) == commands.VISIBILITIES
    assert tuple(enum("ImageStatus")) == commands.STATUSES
    assert set(enum("DiskFormat")) == commands.DISK_FORMATS
    assert set(enum("ContainerFormat")) == commands.CONTAINER_FORMATS
    assert set(enum("LocationStatus")) == commands.LOCATION_STATUSES
    assert tuple(enum("MemberStatus")) == commands.MEMBER_STATUSES
    assert tuple(properties("BatchOperation")["op"]["enum"]) == api_images._BATCH_OPS
    assert set(enum("ChangeKind")) == set(feed_filter.KINDS) == string_constants({"record": 0})
    sort = DOCUMENT["components"]["parameters"]["Sort"]["schema"]["pattern"]
    assert set(re.findall(r"[a-z_]{4,}", sort.partition(":")[0])) == set(listing.SORT_KEYS)


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        ("ImageCreate", api_images._CREATE),
        ("ImageUpdate", api_images._UPDATE),
        ("Attributes", commands.ATTRIBUTES),
        ("Location", commands._LOCATION),
        ("Actor", commands._ACTOR),
        ("Batch", api_images._BATCH),
        ("IdsRequest", api_zones._IDS),
        ("BlockRequest", api_zones._BLOCK),
        ("SealRequest", api_zones._SEAL),
        ("ZoneRequest", api_zones._ZONE),
        ("GatewayRequest", api_zones._GATEWAY),
        ("HeartbeatRequest", api_zones._HEARTBEAT),
        ("FatesRequest", api_deletions._FATES),
        ("ConfirmRequest", api_deletions._CONFIRMATION),
        ("SessionRequest", api_zones._SESSION),
        ("SessionOperations", api_zones._OPERATIONS),
        ("SessionOperation", api_zones._OPERATION),
        ("MemberChange", commands._MEMBER),
        ("QuotaRequest", api_projects._QUOTA),
        ("CompactRequest", api_changes._COMPACT),
        ("TransferRequest", api_leader._TRANSFER),
        ("RaiseRequest", api_level._RAISE),
    ],
)
def test_the_fields_of_a_request_are_those_that_the_api_takes(schema: str, fields: Mapping[str, Any]) -> None:
    assert set(properties(schema)) == set(fields)


def test_the_parameters_of_a_list_are_those_that_the_api_takes() -> None:
    assert set(parameters("GET", f"{wire.PREFIX}/images")) == {*api_images._LIST_PARAMETERS, "properties"}


# -- the document and real answers --------------------------------------------------------------------------------


class Judge:
    """Requests to a peer, whose answers must be as documented; remembers what was seen."""

    def __init__(self, http: Http) -> None:
        self.http = http
        self.seen: set[tuple[str, str, str]] = set()

    async def __call__(
        self, method: str, path: str, body: Any = None, *, accept: str = wire.JSON, **more: Any
    ) -> Answer:
        headers = {"Accept": accept, **more.pop("headers", {})}
        answer = await self.http(method, path, body, headers=headers, **more)
        full = path if path.startswith("/") else f"{wire.PREFIX}/{path}"
        template = self._template(full.partition("?")[0])
        operation = operations().get((method, template or ""))
        if operation is None:
            response = DOCUMENT["components"]["responses"]["MethodNotAllowed" if template else "NotFound"]
        else:
            response = resolved(operation["responses"][str(answer.status)])
            self.seen.add((method, template or "", str(answer.status)))
            if body is not None and answer.status < 400:
                check(body, operation["requestBody"]["content"][wire.JSON]["schema"])
                names = {part.partition("=")[0] for part in full.partition("?")[2].split("&") if part}
                assert names <= set(parameters(method, template or "")), full
        self._check(answer, response)
        return answer

    def _check(self, answer: Answer, response: dict[str, Any]) -> None:
        check_headers(answer.headers, response)
        kind = answer.headers["Content-Type"].partition(";")[0]
        if kind == "text/plain":
            return
        # Bytes of msgpack are hexadecimal text in JSON, which is what the schemas describe.
        check(wire.from_json(wire.to_json(answer.body)), response["content"][kind]["schema"])

    @staticmethod
    def _template(path: str) -> str | None:
        for template in DOCUMENT["paths"]:
            if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), path):
                return str(template)
        return None


def check_headers(given: Mapping[str, str], response: dict[str, Any]) -> None:
    for name, header in response.get("headers", {}).items():
        described = resolved(header)
        assert name in given or not described.get("required"), name
        if name in given:
            numeric = resolved(described["schema"])["type"] in ("integer", "number")
            check(json.loads(given[name]) if numeric else given[name], described["schema"])


@pytest.fixture
async def judge(tmp_path: Path) -> AsyncIterator[Judge]:
    async with registry(tmp_path) as cluster, cluster.http() as http:
        yield Judge(http)


async def exercise(judge: Judge, accept: str) -> None:
    """Every operation, with an answer of each shape that it has."""
    await judge("PUT", "zones/ams", {"endpoint": "https://x:1", "capabilities": {"arch": "arm64"}}, accept=accept)
    await judge("PUT", "zones/ams/gateways/ams-1", {"endpoint": "https://x:2"}, accept=accept)
    await judge("POST", "zones/ams/heartbeat", {"gateway": "ams-1", "level": 1}, accept=accept)
    await judge("GET", "zones?limit=1&after=a", accept=accept)
    await judge("GET", "zones/ams?consistency=bounded&max_staleness=60", accept=accept)
    place = {"zone": "ams", "store": "ams", "key": "k", "size": 3, "md5": "0" * 32, "sha512": "0" * 128}
    attributes = {"name": "x", "status": "active", "size": 3, "checksum": "0" * 32, "disk_format": "raw"}
    whole = {"uuid": UUID, "attributes": attributes, "properties": {"a": "b"}, "tags": ["t"], "locations": [place]}
    key = {"headers": {wire.HEADER_KEY: f"k-{accept}"}}
    for _ in range(2):  # The second answer is a replayed one.
        await judge("POST", "images", {**whole, "home_zone": "ams"}, accept=accept, **key)
    await judge("GET", f"images/{UUID}", accept=accept)
    await judge("PATCH", f"images/{UUID}", {"set": {"name": "y"}, "unset": ["properties.a"]}, accept=accept)
    await judge("PATCH", f"images/{UUID}", {"set_members": {"p2": {"status": "accepted"}}}, accept=accept)
    await judge("GET", "images?member=p2&member_status=accepted&tag=t&tag=t&data_zone=ams", accept=accept)
    await judge("PUT", "projects/p", {"images_max": 0}, accept=accept)
    await judge("GET", "projects/p", accept=accept)
    await judge("GET", "projects?limit=1", accept=accept)
    await judge("POST", "images", {"attributes": {"owner": "p"}}, accept=accept)
    await judge("GET", "images?sort=name:asc&limit=5&owner=nobody", accept=accept)
    await judge("GET", "images?limit=1&lost=true", accept=accept)
    await judge("GET", "bootstrap?limit=1", accept=accept)
    bad = {"op": "delete_image", "image": {"number": 999_999}}
    good = [{"op": "create_image", "attributes": {"name": "z"}}, {"op": "allocate_ids", "count": 2}]
    await judge("POST", "batch", {"operations": [*good, bad]}, accept=accept)
    atomic = {"op": "create_image", "uuid": UUID.replace("a", "b"), "attributes": {}}
    await judge("POST", "batch", {"operations": [atomic], "atomic": True}, accept=accept)
    await judge("POST", "batch", {"operations": [bad], "atomic": True}, accept=accept)
    await judge("DELETE", f"images/{atomic['uuid']}", accept=accept)
    await judge("GET", f"images/{atomic['uuid']}", accept=accept)
    fates = [{"number": number, "uuid": UUID} for number in (1, 999)]
    await judge("POST", "images/fates?consistency=stale", {"images": fates}, accept=accept)
    await judge("POST", "zones/ams/deletions", {"numbers": [1, 2]}, accept=accept)
    await judge("POST", "ids", {"count": 3}, accept=accept)
    await drain(judge, accept)
    for path in (
        "sessions?limit=1",
        f"sessions/{SESSION}",
        "blocks?limit=1",
        "blocks?gateway=ams-1",
        "status",
        "digest?index=9",
    ):
        await judge("GET", path, accept=accept)
    await judge("POST", "scrub", accept=accept)
    await judge("POST", "leader/transfer", {"to": "a"}, accept=accept)
    await judge("POST", "level/raise", {"level": 1}, accept=accept)
    await judge("POST", "level/raise", {"level": 2}, accept=accept)
    await judge("GET", "/healthcheck", accept=accept)


async def drain(judge: Judge, accept: str) -> None:
    """A session with a block, an operation, a gap, and its seal."""
    opened = await judge("POST", "sessions", session(), accept=accept)
    block = {"gateway": "ams-1", "session": SESSION, "size": 10, "token": opened.body["token"]}
    await judge("POST", "blocks", block, accept=accept)
    payload = wire.pack({"op": "create_image", "uuid": UUID.replace("a", "c"), "attributes": {}})
    first = {"sequence": 1, "previous_hash": wire.CHAIN_START.hex(), "payload": payload.hex()}
    for sequence in (1, 1, 7):
        operation = {**first, "sequence": sequence}
        drained = {"operations": [operation], "gateway": "ams-1"}
        await judge("POST", f"sessions/{SESSION}/operations", drained, accept=accept)
    await judge("POST", "blocks/seal", {"gateway": "ams-1"}, accept=accept)


async def follow(judge: Judge) -> None:
    """Messages of the feed, one of each kind of change at least."""
    kinds: set[str] = set()
    url = f"{judge.http.url}{wire.PREFIX}/changes?after=1.0"
    async with asyncio.timeout(20), judge.http.session.get(url) as feed:
        response = operations()["GET", f"{wire.PREFIX}/changes"]["responses"]["200"]
        check_headers(feed.headers, response)
        while not kinds >= {"image", "zone", "session", "block", "project", "heartbeat"}:
            message = json.loads(await feed.content.readline())
            check(message, response["content"][wire.NDJSON]["schema"])
            kinds.add(message.get("kind", message["type"]))
    judge.seen.add(("GET", f"{wire.PREFIX}/changes", "200"))


@pytest.mark.parametrize("accept", [wire.JSON, wire.MSGPACK])
async def test_every_answer_of_a_running_registry_is_as_documented(judge: Judge, accept: str) -> None:
    await exercise(judge, accept)
    await follow(judge)
    await judge("POST", "compact", {"floor": 3}, accept=accept)
    await judge("POST", "compact", {"age_s": 3600}, accept=accept)
    assert (await judge("GET", "changes?after=1.0")).error["code"] == "compacted"
    await judge("GET", "/metrics")
    async with judge.http.session.head(judge.http.url + "/healthcheck") as head:
        check_headers(head.headers, operations()["HEAD", "/healthcheck"]["responses"]["200"])
        judge.seen.add(("HEAD", "/healthcheck", str(head.status)))
    assert (await judge("GET", "openapi.json")).body == DOCUMENT
    successes = {
        (method, path, status)
        for (method, path), operation in operations().items()
        for status in operation["responses"]
        if status.startswith("2")
    }
    assert successes <= judge.seen, successes - judge.seen


async def test_every_refusal_of_bad_input_is_as_documented(judge: Judge) -> None:
    for method, path, data, status, *_ in BAD:
        assert (await judge(method, path, data=data)).status == status, (method, path)
    assert {status for *_, status in judge.seen} >= {"400", "404", "410", "413"}


async def test_what_a_gateway_may_not_do_is_refused_as_documented(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.http("ams-1") as http:
        judge = Judge(http)
        for method, path, body in forbidden():
            assert (await judge(method, path, body)).status == 403, (method, path)


def forbidden() -> list[tuple[str, str, Any]]:
    return [
        ("PUT", "zones/fra", {}),
        ("PUT", "zones/ams/gateways/ams-2", {}),
        ("POST", "zones/fra/heartbeat", {}),
        ("POST", "zones/fra/deletions", {"numbers": [1]}),
        ("POST", "sessions", session("ams-2")),
        ("GET", "sessions", None),
        ("GET", f"sessions/{SESSION}", None),
        ("GET", "blocks", None),
        ("POST", "blocks/seal", {"gateway": "ams-2"}),
        ("POST", "compact", {"floor": 1}),
        ("PUT", "projects/p", {}),
        ("POST", "images", image(home_zone="fra")),
        ("GET", "digest", None),
        ("POST", "scrub", None),
        ("POST", "leader/transfer", {}),
        ("POST", "level/raise", {}),
    ]


async def test_the_judge_of_answers_condemns_what_is_not_documented(cluster_answer: Answer) -> None:
    schema = operations()["GET", f"{wire.PREFIX}/images/{{image}}"]["responses"]["200"]["content"][wire.JSON]["schema"]
    check(cluster_answer.body, schema)
    good = cluster_answer.body["image"]
    without = {name: value for name, value in good.items() if name != "tags"}
    for bad in ({**good, "colour": "red"}, {**good, "status": "purple"}, {**good, "number": "7"}, without):
        with pytest.raises(ValidationError):
            check({"image": bad}, schema)


@pytest.fixture
async def cluster_answer(judge: Judge) -> Answer:
    made = await judge("POST", "images", image())
    return await judge("GET", f"images/{made.body['number']}")
