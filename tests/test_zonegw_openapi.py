"""The gateway's OpenAPI document against the code, and against the answers of a running gateway.

As in test_openapi, schemas are closed for the comparison: a field that an answer has and the document doesn't is a
failure too.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.gateway.running import PATCH_TYPE, Zone, running
from tests.openapi_document import Document, walk
from tests.registry import registry
from zonegw import errors, image_query, images_schema, v1_headers, v1_query
from zonegw.discovery import OPENAPI
from zonegw.http_frame import OCTETS, OPEN_ROUTES
from zonegw.images import CONTAINER_FORMATS, DISK_FORMATS, INT32_MAX, VISIBILITIES, WRITABLE
from zonegw.listing import SORT_CODES
from zonegw.main import Gateway
from zonegw.visibility import MEMBER_STATUSES

PUBLISHED = Document(json.loads(OPENAPI.read_text()))
DOCUMENT = PUBLISHED.raw
operations, resolved = PUBLISHED.operations, PUBLISHED.resolved
parameters, check = PUBLISHED.parameters, PUBLISHED.check
SCHEMAS = DOCUMENT["components"]["schemas"]
STATE_HEADERS = {"x-openstack-request-id", "X-Zonegw-State", "X-Zonegw-Staleness", "X-Zonegw-Revision"}
OTHER_PATHS = ("*", "/{other}")
JSON = "application/json"
NAMESPACE = {"namespace": "os-test", "properties": {"hw_x": {"type": "string"}}, "display_name": "Test"}


def in_query(method: str, path: str) -> set[str]:
    return {name for name, parameter in parameters(method, path).items() if parameter["in"] == "query"}


# -- the document by itself ---------------------------------------------------------------------------------------


def test_the_document_is_openapi_3_1_and_every_reference_leads_somewhere() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    # The token is named as a requirement; a wrong method belongs to no operation.
    unnamed = {"#/components/securitySchemes/token", "#/components/responses/MethodNotAllowed"}
    assert PUBLISHED.components_that_nobody_names() == unnamed


def test_every_schema_is_json_schema() -> None:
    PUBLISHED.check_schemas()


def test_every_operation_is_named_once_and_its_links_name_operations() -> None:
    PUBLISHED.check_operations()
    names = {operation["operationId"] for operation in operations().values()}
    for part in walk(DOCUMENT["paths"]):
        assert part.get("operationId") in {None, *names}


def test_every_answer_says_how_current_it_is_and_every_refusal_comes_as_html_or_json() -> None:
    for (method, path), operation in operations().items():
        for status, response in operation["responses"].items():
            answer = resolved(response)
            assert answer["description"]
            assert set(answer["headers"]) >= STATE_HEADERS, (method, path, status)
            if status >= "400":
                assert set(answer["content"]) == {"text/html", JSON}


# -- the document and the code ------------------------------------------------------------------------------------


@pytest.fixture
async def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> web.Application:
    """The application of a gateway as it was built."""
    built: list[web.Application] = []
    build = Gateway._images_app

    def keeping(gateway: Gateway) -> web.Application:
        built.append(build(gateway))
        return built[-1]

    monkeypatch.setattr(Gateway, "_images_app", keeping)
    async with running(tmp_path):
        pass
    return built[0]


async def test_every_route_is_documented_and_nothing_else(app: web.Application) -> None:
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    assert routes == {*operations(), OTHER_PATHS}


def test_only_the_open_routes_are_documented_without_a_token() -> None:
    without = {path for (_, path), operation in operations().items() if operation.get("security") == []}
    assert {*without, OTHER_PATHS[1]} == OPEN_ROUTES
    assert all("401" in operation["responses"] for (_, path), operation in operations().items() if path not in without)


def error_classes() -> list[type[errors.GatewayError]]:
    """Classes that reach clients; the base class alone is never raised."""

    def below(kind: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return below(errors.GatewayError)[1:]


def test_every_error_code_and_its_status_are_documented_and_no_other() -> None:
    # `error` is aiohttp's own refusals: a path or a method that there is not.
    assert set(SCHEMAS["ErrorCode"]["enum"]) == {kind.code for kind in error_classes()} | {"error"}
    described = {
        (status, code)
        for operation in operations().values()
        for status, response in operation["responses"].items()
        if status >= "400"
        for code in re.findall(r"`(\w+)`", resolved(response)["description"])
    }
    assert described == {(str(kind.http_status), kind.code) for kind in error_classes()}


def test_enumerations_and_bounds_are_those_of_the_code() -> None:
    assert SCHEMAS["Visibility"]["enum"] == list(VISIBILITIES)
    assert SCHEMAS["ImageStatus"]["enum"] == list(images_schema.IMAGE_STATUSES)
    assert SCHEMAS["DiskFormat"]["enum"] == [None, *DISK_FORMATS]
    assert SCHEMAS["ContainerFormat"]["enum"] == [None, *CONTAINER_FORMATS]
    assert SCHEMAS["MemberStatus"]["enum"] == list(MEMBER_STATUSES)
    assert SCHEMAS["Minimum"]["maximum"] == INT32_MAX
    listed = parameters("GET", "/v2/images")
    assert set(listed["sort_key"]["schema"]["items"]["enum"]) == set(SORT_CODES)
    assert set(re.findall(r"[a-z_]{5,}|id|name|size", listed["sort"]["schema"]["pattern"])) == set(SORT_CODES)
    assert listed["visibility"]["schema"]["enum"] == list(image_query.VISIBILITIES)
    schema_names = parameters("GET", "/v2/schemas/{name}")["name"]["schema"]["enum"]
    assert schema_names == list(images_schema.SCHEMAS)


def test_images_have_the_attributes_of_the_schema_that_clients_get() -> None:
    described = SCHEMAS["Image"]["properties"]
    assert set(described) == set(images_schema.IMAGE_PROPERTIES)
    for name, schema in images_schema.IMAGE_PROPERTIES.items():
        assert kinds(described[name]) == kinds(schema), name
    assert set(SCHEMAS["ImageCreate"]["properties"]) == {*WRITABLE, "id", "tags"}
    refused = {name for name in images_schema.READ_ONLY if not name.startswith(images_schema.RESERVED_PREFIX)}
    assert {*SCHEMAS["CreateName"]["not"]["anyOf"][0]["enum"], "id"} == refused
    assert set(SCHEMAS["Member"]["properties"]) == set(images_schema.MEMBER_PROPERTIES)


def kinds(schema: Mapping[str, Any]) -> set[str]:
    """JSON types that a schema allows."""
    schema = resolved(dict(schema))
    if "anyOf" in schema:
        return {kind for part in schema["anyOf"] for kind in kinds(part)}
    found = schema["type"]
    return {found} if isinstance(found, str) else set(found)


def test_the_parameters_of_lists_are_those_that_the_api_takes() -> None:
    taken = {*image_query._PARAMETERS, "sort", "sort_key", "sort_dir", "os_hidden", "properties"}
    assert in_query("GET", "/v2/images") == taken - {"changes-since"}  # only ever refused
    filters = {"name", *v1_query.EQUAL, "changes-since", "marker", "is_public", "deleted", "properties"}
    for path in ("/v1/", "/v1/images", "/v1/images/detail"):
        assert in_query("GET", path) == {*v1_query.SHARED, *filters}


def test_the_headers_of_v1_are_those_that_the_api_takes() -> None:
    described = {name for name in parameters("PUT", "/v1/images/{id}") if name.startswith(v1_headers.META)}
    # Data from elsewhere are never taken.
    assert described == {v1_headers.META + name for name in v1_headers._ATTRIBUTES} - {"x-image-meta-location"}


# -- the document and real answers --------------------------------------------------------------------------------


class Judge:
    """Requests to a gateway, whose answers must be as documented; remembers which were seen."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.seen: set[tuple[str, str, int]] = set()

    async def __call__(self, method: str, path: str, expected: int, **options: Any) -> Any:
        """The decoded answer, which must have the `expected` status. Redirects are not followed."""
        sent = options.get("json")
        async with self.zone.ask(method, path, allow_redirects=False, **options) as answer:
            body = await answer.read()
            assert answer.status == expected, body
            template = self._template(path.partition("?")[0])
            operation = operations().get((method, template or ""))
            if operation is None:
                response = DOCUMENT["components"]["responses"]["MethodNotAllowed" if template else "NotFound"]
            else:
                response = resolved(operation["responses"][str(answer.status)])
                self.seen.add((method, template or "", answer.status))
                if sent is not None and answer.status < 400:
                    kind = (options.get("headers") or {}).get("Content-Type", JSON)
                    check(sent, operation["requestBody"]["content"][kind]["schema"])
            check_headers(answer.headers, response)
            return self._content(answer.content_type, body, response)

    @staticmethod
    def _content(kind: str, body: bytes, response: dict[str, Any]) -> Any:
        if "content" not in response:
            assert body == b""
            return None
        schema = response["content"][kind]["schema"]
        if kind != JSON:
            return body
        decoded = json.loads(body)
        check(decoded, schema)
        return decoded

    @staticmethod
    def _template(path: str) -> str | None:
        """The documented path: of several that fit, the one with the most fixed text."""
        fitting = [t for t in DOCUMENT["paths"] if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(t)), path)]
        return min(fitting, key=lambda template: template.count("{"), default=None)


def check_headers(given: Mapping[str, str], response: dict[str, Any]) -> None:
    for name, header in response.get("headers", {}).items():
        described = resolved(header)
        assert name in given or not described.get("required"), name
        if name in given:
            numeric = resolved(described["schema"]).get("type") == "integer"
            check(json.loads(given[name]) if numeric else given[name], described["schema"])


@pytest.fixture
async def judge(tmp_path: Path) -> AsyncIterator[Judge]:
    """A gateway with a registry behind it and metadata definitions."""
    (tmp_path / "metadefs").mkdir()
    (tmp_path / "metadefs" / "test.json").write_text(json.dumps(NAMESPACE))
    directory = json.dumps(str(tmp_path / "metadefs"))
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "zone", registry=cluster, images=f"metadefs_dir = {directory}") as zone,
    ):
        await zone.drained()
        yield Judge(zone)


DATA = {"Content-Type": OCTETS}
PATCHES = {"Content-Type": PATCH_TYPE}
FORMATS = {"disk_format": "raw", "container_format": "bare"}


async def exercise_v2(judge: Judge) -> None:
    """Every operation on images of v2, with the answers that it has while all is well."""
    image = await judge("POST", "/v2/images", 201, json={**FORMATS, "name": "x", "tags": ["t"], "hw_x": "y"})
    path = image["self"]
    await judge("POST", "/v2/images", 409, json={"id": image["id"]})
    await judge("POST", "/v2/images", 403, json={"status": "active"}, headers={"Accept": JSON})
    await judge("GET", path + "/file", 204)
    await judge("PUT", path + "/file", 400, data=b"abc", headers={**DATA, "x-openstack-image-size": "4"})
    await judge("PUT", path + "/file", 204, data=b"abcdef", headers=DATA)
    await judge("PUT", path + "/file", 409, data=b"abcdef", headers=DATA)
    await judge("PUT", path + "/file", 415, data=b"abcdef", headers={"Content-Type": "text/plain"})
    assert await judge("GET", path + "/file", 200) == b"abcdef"
    assert await judge("GET", path + "/file", 206, headers={"Range": "bytes=1-2"}) == b"bc"
    await judge("GET", path + "/file", 416, headers={"Range": "bytes=9-"})
    await judge("GET", "/v2/images?limit=1&sort=name:asc&visibility=shared&tag=t&hw_x=y", 200)
    await judge("GET", "/v2/images?limit=x", 400)
    await judge("GET", path, 200)
    await judge("GET", path, 200, user="root")
    await judge("GET", path, 404, user="bob")
    await judge("GET", path, 401, user=None)
    await judge("PATCH", path, 200, json=[{"op": "replace", "path": "/name", "value": "z"}], headers=PATCHES)
    await judge("PATCH", path, 415, json=[])
    await judge("POST", f"{path}/members", 200, json={"member": "other"})
    await judge("GET", f"{path}/members", 200)
    await judge("GET", f"{path}/members/other", 200, user="bob")
    await judge("PUT", f"{path}/members/other", 200, json={"status": "accepted"}, user="bob")
    await judge("DELETE", f"{path}/members/other", 204)
    await judge("PUT", f"{path}/tags/blue", 204)
    await judge("DELETE", f"{path}/tags/blue", 204)
    await judge("POST", f"{path}/actions/deactivate", 204)
    await judge("GET", path + "/file", 403)
    await judge("POST", f"{path}/actions/reactivate", 204)
    await judge("DELETE", f"/v2/stores/fra/{image['id']}", 403)
    await judge("DELETE", path, 204)
    await judge("DELETE", path, 404)


async def exercise_imports(judge: Judge) -> None:
    """An import by every operation that has to do with one."""
    image = await judge("POST", "/v2/images", 201, json=FORMATS)
    path = image["self"]
    await judge("PUT", f"{path}/stage", 204, data=b"abc", headers=DATA)
    await judge("POST", f"{path}/import", 202, json={"method": {"name": "glance-direct"}})
    (task,) = (await judge("GET", f"{path}/tasks", 200))["tasks"]
    await judge("GET", task["self"], 200)
    assert (await judge("GET", "/v2/tasks?limit=1&sort_key=status", 200))["tasks"]
    await judge("POST", f"{path}/import", 400, json={"method": {}})
    for name in ("import", "stores", "usage"):
        await judge("GET", f"/v2/info/{name}", 200)
    await judge("GET", "/v2/info/stores/detail", 200, user="root")
    await judge("GET", "/v2/info/stores/detail", 403)


async def exercise_v1(judge: Judge) -> None:
    """Every operation of v1."""
    meta = {"x-image-meta-name": "x", "x-image-meta-disk_format": "raw", "x-image-meta-container_format": "bare"}
    made = (await judge("POST", "/v1/images", 201, data=b"abcdef", headers={**DATA, **meta}))["image"]
    path = f"/v1/images/{made['id']}"
    await judge("HEAD", path, 200)
    assert await judge("GET", path, 200) == b"abcdef"
    assert await judge("GET", path, 206, headers={"Range": "bytes=-2"}) == b"ef"
    await judge("PUT", path, 200, headers={"x-image-meta-name": "y"})
    for listed in ("/v1/", "/v1/images", "/v1/images/detail"):
        assert (await judge("GET", f"{listed}?limit=1&property-a=b&sort_key=name", 200))["images"] == []
        assert (await judge("GET", f"{listed}?limit=1", 200))["images"]
    await judge("PUT", f"{path}/members", 204, json={"memberships": [{"member_id": "p2", "can_share": True}]})
    await judge("PUT", f"{path}/members/other", 204, json={"member": {"can_share": True}})
    await judge("GET", f"{path}/members", 200)
    assert (await judge("GET", "/v1/shared-images/other", 200, user="bob"))["shared_images"]
    await judge("DELETE", f"{path}/members/other", 204)
    await judge("DELETE", path, 200)
    await judge("GET", path, 404)


async def exercise_descriptions(judge: Judge) -> None:
    """What is asked before and beside the images."""
    await judge("GET", "/", 300, user=None)
    for path in ("/versions", "/healthcheck", "/metrics", "/zonegw/v1/status", "/zonegw/v1/openapi.json"):
        await judge("GET", path, 200, user=None)
    for path in ("/healthcheck", "/metrics", "/zonegw/v1/status"):
        await judge("HEAD", path, 200, user=None)
    await judge("GET", "/v2", 302, user=None)
    await judge("GET", "/v2/metadefs/namespaces?limit=1", 200)
    await judge("GET", "/v2/metadefs/namespaces/os-test", 200)
    for name in images_schema.SCHEMAS:
        await judge("GET", f"/v2/schemas/{name.replace('/', '%2F')}", 200)


async def test_answers_are_as_documented_and_every_operation_was_asked(judge: Judge) -> None:
    await exercise_v2(judge)
    await exercise_imports(judge)
    await exercise_v1(judge)
    await exercise_descriptions(judge)
    await judge("PUT", "/v2/images", 405)
    await judge("POST", "/metrics", 405)
    await judge("GET", "/v2/nothing", 404)
    asked = {(method, path) for method, path, status in judge.seen if status < 400}
    # The gateway alone has no second store to take a copy from.
    assert set(operations()) - asked == {("DELETE", "/v2/stores/{store}/{id}")}
