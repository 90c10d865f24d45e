"""A store in Swift whose users are Keystone's, with a real Keystone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data_stores import keystone_server
from tests.data_stores.keystone_server import Keystone, keystone
from tests.data_stores.swift_server import Swift
from tests.data_stores.test_contract import pieces, read
from tests.gateway.running import running
from zonegw import config
from zonegw.data_stores.interface import mint_key
from zonegw.data_stores.swift import SwiftStore
from zonegw.errors import DataUnavailable
from zonegw.limits import Limits
from zonegw.store_config import SwiftConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BLOB = os.urandom(100_000)


@pytest.fixture(scope="module")
def users(swift_server: Swift, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    """Keystone, and a proxy of the Swift that believes it."""
    url = f"{swift_server.keystone_url}/v1/KEY_$(project_id)s"
    with keystone(tmp_path_factory.mktemp("users"), url) as server:
        swift_server.start_keystone_proxy(
            server.project_id, server.token, auth_url=server.auth_url, user_name=keystone_server.USER,
            password=keystone_server.PASSWORD, project=keystone_server.PROJECT,
        )  # fmt: skip
        try:
            yield server
        finally:
            swift_server.stop("keystone")


def login(users: Keystone) -> dict[str, Any]:
    return {
        "name": "default", "auth": "v3", "auth_url": users.auth_url, "user": keystone_server.USER,
        "password_file": users.password_file, "project": keystone_server.PROJECT, "region": keystone_server.REGION,
        "container": "images",
    }  # fmt: skip


async def test_a_gateway_keeps_images_in_the_account_of_its_project_and_renews_its_token(
    users: Keystone, tmp_path: Path
) -> None:
    lines = [f"{name} = {config._literal(str(value))}" for name, value in login(users).items()]
    more = "\n".join(["[[stores]]", 'type = "swift"', *lines])
    async with running(tmp_path, more=more) as zone:
        image = await zone.create_active(BLOB)
        assert await zone.data(image) == BLOB
        store = zone.gateway.own_stores.get("default")
        assert isinstance(store, SwiftStore)
        access = store._swift._access
        assert access is not None
        assert "/v1/KEY_" in access.url
        assert 3000 < (access.left_s or 0) <= 3600
        store._swift._access = dataclasses.replace(access, token="not a token")
        assert await zone.data(await zone.create_active(BLOB)) == BLOB


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user": "nobody"}, "Keystone refuses these credentials"),
        ({"project": "none"}, "Keystone refuses these credentials"),
        ({"region": "ams"}, "names no public endpoint of an object-store for region ams"),
        ({"interface": "admin"}, "names no admin endpoint"),
        ({"interface": "internal"}, "store default can't be reached"),
    ],
)
async def test_what_is_wrong_with_a_login_is_told(users: Keystone, wrong: dict[str, Any], said: str) -> None:
    limits = Limits(store_attempts_max=1)
    store = SwiftStore(SwiftConfig(**login(users) | wrong), limits)
    try:
        with pytest.raises(DataUnavailable, match=said):
            await store.size(mint_key())
    finally:
        await store.close()


async def test_an_account_that_is_configured_goes_before_the_catalogues(users: Keystone) -> None:
    store = SwiftStore(SwiftConfig(**login(users)), Limits())
    key = mint_key()
    await store.write(key, pieces(BLOB), len(BLOB))
    access = store._swift._access
    await store.close()
    assert access is not None
    named = SwiftStore(SwiftConfig(**login(users) | {"interface": "internal", "url": access.url}), Limits())
    assert await read(named, key, 0, len(BLOB)) == BLOB
    await named.close()
