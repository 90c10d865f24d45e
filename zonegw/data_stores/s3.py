"""Data store in one bucket that speaks S3 (obstore).

An object appears when the bucket has all of it: small ones by one request, others by a multipart upload. Every request
is signed over its bytes, so that the bucket refuses others than were sent. Parts of an upload that was cut off are
found by the key (`s3_uploads`), and whoever writes has noted the key before.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from zonegw.data_stores.interface import Digests, Stored, gather
from zonegw.data_stores.resuming import resumed
from zonegw.data_stores.s3_uploads import UnfinishedUploads
from zonegw.data_stores.secret import secret
from zonegw.errors import BodyTooLarge, DataUnavailable, GatewayError, NotFound, StorageFull
from zonegw.limits import Limits
from zonegw.store_config import S3Config

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

log = logging.getLogger(__name__)

# How servers name "no room": AWS has none, others follow Swift, Ceph and MinIO.
FULL = re.compile(r"<Code>(?:EntityTooLarge|QuotaExceeded|\w*StorageFull|InsufficientStorage)</Code>")
# Which class of exception it is depends on the call; the answer's status stands in the text of each.
STATUS = re.compile(r"status code: (\d{3})")
# A stream lasts as long as its reader takes; what stands still is ended by the time between two reads.
STREAM_MAX = "7days"


class S3Store:
    """Objects named by their keys."""

    kind = "s3"

    def __init__(self, config: S3Config, limits: Limits) -> None:
        self.name = config.name
        self._config = config
        self._limits = limits
        self._uploads = UnfinishedUploads(config, limits)
        self._secret = ""
        self._opened: Bucket | None = None

    def path(self, key: str) -> Path | None:
        return None

    def _bucket(self) -> Bucket:
        """Opened again where the secret has changed."""
        config, found = self._config, secret(self._config.secret_key_file)
        if self._opened is None or found != self._secret:
            self._opened = Bucket(
                config.bucket, endpoint=config.endpoint, region=config.region, skip_signature=not config.access_key,
                access_key_id=config.access_key, secret_access_key=found, client_options=self._client_options(),
                virtual_hosted_style_request=config.virtual_hosted, retry_config=self._retries(),
            )  # fmt: skip
            self._secret = found
        return self._opened

    def _client_options(self) -> "ClientConfig":
        limits = self._limits
        options: ClientConfig = {
            "allow_http": self._config.endpoint.startswith("http:"), "timeout": STREAM_MAX,
            "connect_timeout": timedelta(seconds=limits.store_connect_max_s),
            "read_timeout": timedelta(seconds=limits.store_idle_max_s),
        }  # fmt: skip
        if self._config.ca_file is not None:
            options["root_certificate"] = self._config.ca_file.read_bytes()
        return options

    def _retries(self) -> "RetryConfig":
        limits = self._limits
        delay = timedelta(seconds=limits.store_retry_delay_s)
        return {
            "max_retries": limits.store_attempts_max - 1, "retry_timeout": timedelta(seconds=limits.store_idle_max_s),
            "backoff": {"init_backoff": delay, "max_backoff": delay, "base": 2},
        }  # fmt: skip

    # Writing.

    async def write(self, key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
        limits, digests = self._limits, Digests()
        with self._translated():
            writer = obstore.open_writer_async(
                self._bucket(), key, buffer_size=limits.s3_part_bytes, max_concurrency=limits.s3_parts_at_once_max
            )
        async with aclosing(digests.passing(gather(body, limits.data_chunk_bytes))) as pieces:
            async for piece in pieces:
                if digests.size > limits.s3_part_bytes * limits.s3_parts_max:
                    raise BodyTooLarge(f"store {self.name} takes no larger image (limits.s3_part_bytes, s3_parts_max)")
                with self._translated():
                    await writer.write(piece)
        with self._translated():
            await writer.close()
        return digests.stored(key, self.name)

    # Reading.

    async def size(self, key: str) -> int | None:
        try:
            with self._translated():
                return (await obstore.head_async(self._bucket(), key))["size"]
        except NotFound:
            return None

    def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        failures_max = self._limits.fetch_attempts_max
        return resumed(self.name, lambda at: self._range(key, at, end), start, end, failures_max)

    async def _range(self, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        with self._translated():
            found = await obstore.get_async(self._bucket(), key, options={"range": (start, end)})
            stream = aiter(found.stream(min_chunk_size=self._limits.data_chunk_bytes))
        while True:
            with self._translated():
                piece = await anext(stream, None)
            if piece is None:
                return
            yield bytes(piece)

    # Removal.

    async def delete(self, key: str) -> None:
        try:
            with self._translated():
                await obstore.delete_async(self._bucket(), key)
        except NotFound:
            pass
        await self._uploads.abort(key)

    # State.

    async def reachable(self) -> bool:
        try:
            async with asyncio.timeout(self._limits.store_probe_max_s):
                await self.size("0" * 32)
        except (TimeoutError, DataUnavailable):
            return False
        return True

    async def properties(self) -> dict[str, Any]:
        return {"endpoint": self._config.endpoint, "bucket": self._config.bucket}

    async def close(self) -> None:
        await self._uploads.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What obstore raises, in the words of this gateway."""
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> GatewayError:
        text = str(error)
        said, told = _brief(text), STATUS.search(text)
        status = told[1] if told else ""
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
            return NotFound("the image's data are gone")
        log.warning("store %s: %s", self.name, said)
        if status in ("413", "507") or FULL.search(text):
            return StorageFull(f"store {self.name} is full or over its quota; nothing was kept of this upload: {said}")
        if status in ("401", "403"):
            log.error(
                "store %s refuses this gateway: look at access_key, secret_key_file and the bucket's rights", self.name
            )
            return DataUnavailable(f"store {self.name} does not let this gateway in: {said}")
        return DataUnavailable(f"store {self.name} can't be used now: {said}")


def _brief(text: str) -> str:
    """The sentence, S3's code and the request's ID, by which the store's operator finds it; not the whole document."""
    told = re.findall(r"<(Code|Message|RequestId)>([^<]{1,200})<", text)
    return " · ".join(
        [text.splitlines()[0][:300].partition(": <?xml")[0], *(f"{name} {value}" for name, value in told)]
    )
