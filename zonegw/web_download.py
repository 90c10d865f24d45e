"""Fetching a URL that a tenant named, without lending him the gateway's place in the network.

Every hop of a redirect is checked as the first URL was. Names are resolved here, every address that a name has must be
allowed, and the connection goes to the very addresses that were checked; after connecting, the peer's address is
looked at once more. Nothing of the client's request travels along: no token, no headers, no cookies.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncGenerator

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from zonegw.errors import BadRequest, BodyTooLarge, DataUnavailable
from zonegw.import_rules import WebRules
from zonegw.limits import Limits

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
DEFAULT_PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
# Well-known prefix of NAT64: the last 32 bits are an IPv4 address.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_internal(address: Address) -> bool:
    """Whether an address is not one of the public Internet; IPv4 inside IPv6 counts as what it stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_internal(inner)
        if address.is_site_local:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)


class WebDownload:
    """Reads URLs within `rules`."""

    def __init__(self, rules: WebRules, limits: Limits) -> None:
        self._rules = rules
        self._limits = limits

    def check(self, uri: str) -> URL:
        """The URL, if it may be asked for. Raises BadRequest that says what is wrong with it."""
        try:
            url = URL(uri)
            port = url.port
        except ValueError:
            raise BadRequest(f"{uri!r:.200} is no URL") from None
        if len(uri) > self._limits.web_uri_max_chars:
            raise BadRequest(f"a URL has at most {self._limits.web_uri_max_chars} characters")
        if not url.host or url.scheme not in DEFAULT_PORTS:
            raise BadRequest("web-download takes an absolute http or https URL")
        if url.user is not None or url.password is not None:
            raise BadRequest("web-download takes no user or password in the URL: they would be kept and shown")
        self._check_lists(url.scheme, url.host.lower().rstrip("."), port or DEFAULT_PORTS[url.scheme])
        self._check_literal(url.host)
        return url

    def _check_lists(self, scheme: str, host: str, port: int) -> None:
        rules = self._rules
        for what, value, allowed, disallowed in (
            ("scheme", scheme, rules.allowed_schemes, rules.disallowed_schemes),
            ("host", host, rules.allowed_hosts, rules.disallowed_hosts),
            ("port", port, rules.allowed_ports, rules.disallowed_ports),
        ):
            if (allowed and value not in allowed) or value in disallowed:
                raise BadRequest(f"URI for web-download does not pass filtering: the {what} {value} is not allowed")

    def _check_literal(self, host: str) -> None:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return
        self.check_address(address)

    def check_address(self, address: Address) -> None:
        """Raises BadRequest for an internal address that the operator did not open. Which one it is stays unsaid: the
        tenant need not learn what names mean in here."""
        if is_internal(address) and not any(address in network for network in self._rules.allow_internal):
            raise BadRequest("URI for web-download does not pass filtering: the host has an internal address")

    async def read(self, uri: str) -> AsyncGenerator[bytes]:
        """The bytes behind `uri`. Raises BadRequest for what may not be asked for, DataUnavailable for what does not
        answer as it should, BodyTooLarge."""
        try:
            async with (
                asyncio.timeout(self._limits.web_download_max_s),
                self._session() as session,
                await self._follow(session, self.check(uri)) as response,
            ):
                self._check_announced(response)
                async for piece in response.content.iter_chunked(self._limits.data_chunk_bytes):
                    yield piece
        except TimeoutError as error:
            raise DataUnavailable(f"{uri} took too long") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DataUnavailable(f"{uri} can't be fetched: {_short(error)}") from error

    def _session(self) -> aiohttp.ClientSession:
        idle = self._limits.web_idle_max_s
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_CheckedResolver(self), use_dns_cache=False, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, connect=idle, sock_connect=idle, sock_read=idle),
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "zonegw"},
        )  # fmt: skip

    async def _follow(self, session: aiohttp.ClientSession, url: URL) -> aiohttp.ClientResponse:
        for _ in range(self._limits.web_redirects_max + 1):
            response = await session.get(url, allow_redirects=False)
            self._check_peer(response)
            if response.status == 200:
                return response
            target = response.headers.get("Location")
            response.close()
            if response.status not in REDIRECTS or not target:
                raise DataUnavailable(f"{url} answered {response.status}")
            url = self.check(_joined(url, target))
        raise DataUnavailable(f"{url} redirects more than {self._limits.web_redirects_max} times")

    def _check_peer(self, response: aiohttp.ClientResponse) -> None:
        """A small answer may have closed its connection already; its address was checked by the resolver."""
        transport = response.connection.transport if response.connection else None
        peer = transport.get_extra_info("peername") if transport else None
        if peer is not None:
            self.check_address(ipaddress.ip_address(peer[0]))

    def _check_announced(self, response: aiohttp.ClientResponse) -> None:
        if (response.content_length or 0) > self._limits.image_max_bytes:
            raise BodyTooLarge(
                f"an image has at most {self._limits.image_max_bytes} bytes here (limits.image_max_bytes)"
            )


class _CheckedResolver(AbstractResolver):
    """Resolves a name and lets none of its addresses through if one of them is refused."""

    def __init__(self, web: WebDownload) -> None:
        self._web = web

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results = []
        for kind, _, protocol, _, place in found:
            address = str(place[0])
            self._web.check_address(ipaddress.ip_address(address))
            results.append(
                ResolveResult(
                    hostname=host, host=address, port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
                )
            )
        return results

    async def close(self) -> None:
        pass


def _joined(url: URL, target: str) -> str:
    try:
        return str(url.join(URL(target)))
    except ValueError:
        raise DataUnavailable(f"{url} redirects to what is no URL") from None


def _short(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__
