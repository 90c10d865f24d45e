"""How the gateway logs in to Swift: v1 (TempAuth, many other Swifts), Keystone v3 by password, or not at all.

A login gives the URL of the account and a token with its time to live; `swift_connection` decides when to log in again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import aiohttp

from zonegw.data_stores.secret import secret
from zonegw.errors import DataUnavailable
from zonegw.store_config import SwiftConfig


@dataclass(frozen=True, slots=True)
class Access:
    """What a login gave: `left_s` tells for how long the token is good, None where nobody said."""

    url: str
    token: str | None = None
    left_s: float | None = None


class Login(Protocol):
    """Raises DataUnavailable, PermissionError for credentials that are refused, and what aiohttp raises."""

    async def __call__(self, http: aiohttp.ClientSession) -> Access: ...


def login_of(config: SwiftConfig) -> Login:
    logins: dict[str, Callable[[SwiftConfig], Login]] = {"v1": V1, "v3": V3, "none": Public}
    return logins[config.auth](config)


class Public:
    """An account whose containers everybody may read."""

    def __init__(self, config: SwiftConfig) -> None:
        self._access = Access(config.url)

    async def __call__(self, http: aiohttp.ClientSession) -> Access:
        return self._access


class V1:
    """One GET with user and key."""

    def __init__(self, config: SwiftConfig) -> None:
        self._config = config

    async def __call__(self, http: aiohttp.ClientSession) -> Access:
        config = self._config
        headers = {"X-Auth-User": config.user, "X-Auth-Key": secret(config.password_file)}
        async with http.get(config.auth_url, headers=headers) as answer:
            _check(answer, "the login")
            url, token = answer.headers.get("X-Storage-Url"), answer.headers.get("X-Auth-Token")
            if url is None or token is None:
                raise DataUnavailable(f"{config.auth_url} answered a login without X-Storage-Url and X-Auth-Token")
            left = answer.headers.get("X-Auth-Token-Expires", "")
        return Access(config.url or url, token, float(left) if left.isdigit() else None)


class V3:
    """A token of Keystone, for a project, and the account's URL from its catalogue."""

    def __init__(self, config: SwiftConfig) -> None:
        self._config = config

    async def __call__(self, http: aiohttp.ClientSession) -> Access:
        url = f"{self._config.auth_url}/auth/tokens"
        async with http.post(url, json=self.request()) as answer:
            _check(answer, "Keystone")
            token, body = answer.headers.get("X-Subject-Token"), await answer.json()
        if token is None:
            raise DataUnavailable(f"{url} answered a login without X-Subject-Token")
        return Access(self._config.url or self.endpoint(body), token, _left_s(body["token"].get("expires_at")))

    def request(self) -> dict[str, Any]:
        config = self._config
        user = {"name": config.user, "domain": {"name": config.user_domain}, "password": secret(config.password_file)}
        project = {"name": config.project, "domain": {"name": config.project_domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        return {"auth": {"identity": identity, "scope": {"project": project}}}

    def endpoint(self, body: dict[str, Any]) -> str:
        """The object store's URL of this region and interface. Raises DataUnavailable."""
        config = self._config
        for service in body["token"].get("catalog", ()):
            for row in service["endpoints"] if service["type"] == "object-store" else ():
                if row["interface"] == config.interface and config.region in (None, row.get("region_id")):
                    return str(row["url"]).rstrip("/")
        raise DataUnavailable(
            f"Keystone's catalogue names no {config.interface} endpoint of an object-store for region {config.region}"
        )


def _check(answer: aiohttp.ClientResponse, who: str) -> None:
    if answer.status in (401, 403):
        raise PermissionError(f"{who} refuses these credentials ({answer.status})")
    if answer.status not in (200, 201, 204):
        raise DataUnavailable(f"{who} answered {answer.status}")


def _left_s(expires_at: str | None) -> float | None:
    if expires_at is None:
        return None
    return (datetime.fromisoformat(expires_at) - datetime.now(UTC)).total_seconds()
