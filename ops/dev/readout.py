"""What a cluster's registry holds, read as an operator reads it."""

from __future__ import annotations

from typing import Any

from ops.dev.cluster import Cluster
from raftreg.client import Client, client_ssl_context

LIST_PAGE = 500


def client_of(cluster: Cluster, deadline_s: float = 10.0) -> Client:
    """A client of the cluster's registry, as operator; `deadline_s` bounds each call with its retries."""
    tls = cluster.wiring.operator_tls()
    return Client(cluster.registry_urls, ssl=client_ssl_context(tls.ca, tls.cert, tls.key), deadline_s=deadline_s)


async def registry_images(client: Client) -> list[dict[str, Any]]:
    """All images that are not deleted, page by page, linearizable."""
    images: list[dict[str, Any]] = []
    after: dict[str, Any] = {}
    while True:
        page = await client.list_images(limit=LIST_PAGE, **after)
        images += page["images"]
        if page.get("next") is None:
            return images
        after = {"marker": page["next"]}
