"""Multipart uploads that were cut off: found by their key and aborted, which obstore has no calls for.

Two requests with version 4 signatures. Without them the parts would be kept, invisible and paid for.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import aiohttp
from yarl import URL

from zonegw.data_stores.secret import secret
from zonegw.errors import DataUnavailable
from zonegw.limits import Limits
from zonegw.store_config import S3Config

NOTHING = hashlib.sha256(b"").hexdigest()
# Nothing under the key; a server that knows no multipart uploads has none either.
NONE_THERE = frozenset({404, 501})


class UnfinishedUploads:
    """Of one bucket."""

    def __init__(self, config: S3Config, limits: Limits) -> None:
        self._config = config
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None

    async def abort(self, key: str) -> None:
        """Raises DataUnavailable where the bucket can't be asked."""
        for upload in await self._of(key):
            await self._ask("DELETE", key, {"uploadId": upload})

    async def _of(self, key: str) -> list[str]:
        document = await self._ask("GET", "", {"prefix": key, "uploads": ""})
        if not document:
            return []
        try:
            uploads = ElementTree.fromstring(document).iterfind("{*}Upload")
        except ElementTree.ParseError as error:
            raise DataUnavailable(
                f"store {self._config.name} lists its uploads in words of its own: {error}"
            ) from error
        return [row.findtext("{*}UploadId", "") for row in uploads if row.findtext("{*}Key") == key]

    async def _ask(self, method: str, key: str, query: Mapping[str, str]) -> bytes:
        config = self._config
        base = urlsplit(config.endpoint)
        parts = [part for part in (base.path.strip("/"), "" if config.virtual_hosted else config.bucket, key) if part]
        path, text = "/" + "/".join(parts), _encoded(query)
        headers = signed(method, base.netloc, path, text, self._config, datetime.now(UTC))
        url = URL(f"{base.scheme}://{base.netloc}{path}?{text}", encoded=True)
        try:
            async with self._http().request(method, url, headers=headers) as answer:
                body = await answer.read()  # about one key: a few lines
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise DataUnavailable(f"store {config.name} can't be reached: {error or type(error).__name__}") from error
        if answer.status in NONE_THERE:
            return b""
        if answer.status not in (200, 204):
            raise DataUnavailable(f"store {config.name} lets nobody list or abort its uploads ({answer.status})")
        return body

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._limits.store_idle_max_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _encoded(query: Mapping[str, str]) -> str:
    """In the order and the spelling that are signed."""
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))


def signed(method: str, host: str, path: str, query: str, config: S3Config, now: datetime) -> dict[str, str]:
    """Headers of a request without a body."""
    day, at = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": NOTHING, "x-amz-date": at}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = "\n".join([method, quote(path), query, lines, names, NOTHING])
    scope = f"{day}/{config.region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret(config.secret_key_file)}".encode()
    for part in (day, config.region, "s3", "aws4_request", to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={config.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    return headers | {"Authorization": f"AWS4-HMAC-SHA256 {credential}"}
