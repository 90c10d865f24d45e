"""What clients ask before they use the API, and where links in answers point to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateway.running import running
from zonegw import metadefs
from zonegw.errors import ConfigError

NAMESPACE = {
    "namespace": "OS::Compute::Quota",
    "display_name": "Quota",
    "properties": {"quota:cpu_shares": {"type": "integer", "title": "Shares"}},
    "resource_type_associations": [{"name": "OS::Nova::Flavor"}],
}


@pytest.mark.parametrize("path", ["/v3/images", "/images", "/anything", "/v20"])
async def test_paths_of_no_version_answer_with_the_choices_and_ask_for_no_token(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as zone, zone.ask("GET", path, user=None) as answer:
        assert answer.status == 300
        assert "v2.17" in [version["id"] for version in (await answer.json())["versions"]]


async def test_v2_without_a_slash_leads_there_and_below_it_a_token_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with zone.ask("GET", "/v2", user=None, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, f"{zone.url}/v2/")
        assert await zone.status("GET", "/v2/") == 404
        assert await zone.status("GET", "/v2/images", user=None) == 401
        assert await zone.status("GET", "/v2/nothing", user=None) == 401
        assert await zone.status("GET", "/v2/nothing") == 404
        assert await zone.status("HEAD", "/v2/images") == 405
        assert await zone.status("OPTIONS", "/v2/images") == 200


@pytest.mark.parametrize(
    ("more", "headers", "base"),
    [
        ("", {"Host": "images.example:9292"}, "http://images.example:9292"),
        ("", {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil"}, None),
        ('trusted_proxies = ["127.0.0.0/8"]', {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "img"}, "https://img"),
        ('trusted_proxies = ["192.0.2.0/24"]', {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "img"}, None),
        ('public_url = "https://img.example/"', {"X-Forwarded-Host": "evil"}, "https://img.example"),
    ],
)
async def test_links_point_to_where_clients_reach_the_api(
    tmp_path: Path, more: str, headers: dict[str, str], base: str | None
) -> None:
    async with running(tmp_path, images=more) as zone:
        async with zone.ask("GET", "/", user=None, headers=headers) as answer:
            link = (await answer.json())["versions"][0]["links"][0]["href"]
        assert link == f"{base or zone.url}/v2/"


@pytest.mark.parametrize("name", ["image", "images", "member", "members", "task", "tasks", "metadefs/namespace"])
async def test_every_schema_names_its_properties(tmp_path: Path, name: str) -> None:
    async with running(tmp_path) as zone:
        schema = await zone.get(f"/v2/schemas/{name}")
        assert schema["name"] == name.rpartition("/")[2]
        assert schema["properties"]


async def test_without_imports_no_task_is_listed_and_none_is_found(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        assert (await zone.get("/v2/tasks?limit=20&sort_key=status&sort_dir=desc"))["tasks"] == []
        assert await zone.status("GET", "/v2/tasks/1") == 404


async def test_metadata_definitions_are_read_from_files_in_pages(tmp_path: Path) -> None:
    files = tmp_path / "metadefs"
    files.mkdir()
    for name in ("b", "a", "c"):
        (files / f"{name}.json").write_text(json.dumps(NAMESPACE | {"namespace": name}))
    async with running(tmp_path, images=f'metadefs_dir = "{files}"') as zone:
        first = await zone.get("/v2/metadefs/namespaces?limit=2")
        assert [one["namespace"] for one in first["namespaces"]] == ["a", "b"]
        assert "properties" not in first["namespaces"][0]
        rest = await zone.get(first["next"])
        assert [one["namespace"] for one in rest["namespaces"]] == ["c"]
        assert "next" not in rest
        assert (await zone.get("/v2/metadefs/namespaces/b"))["properties"] == NAMESPACE["properties"]
        assert await zone.status("GET", "/v2/metadefs/namespaces/d") == 404
        assert await zone.status("GET", "/v2/metadefs/namespaces?limit=x") == 400
        assert await zone.status("GET", "/v2/metadefs/namespaces?marker=x") == 400
        assert await zone.status("POST", "/v2/metadefs/namespaces", json=NAMESPACE) == 405


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"namespace": 7}'])
def test_a_file_that_is_no_metadata_definition_is_named_at_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.json"):
        metadefs.load(tmp_path)
