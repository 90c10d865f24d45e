"""Every bound of a gateway, with its name and reason."""

from dataclasses import dataclass, fields
from typing import Any

from zonegw.errors import ConfigError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# The registry remembers 256 results. One of them is the last that was acked, which the handshake names: a batch of 256
# with a lost answer would push it out, and the session would count as diverged.
SESSION_WINDOW_MAX = 255


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds; each can be set under [limits] of zonegw.toml."""

    # Metadata store. The map is address space only (sparse), far above the quota, so that a full map never decides.
    store_map_size_bytes: int = 16 * GIB
    # Growth is refused above this: a million pending creates with their uploads, and a million images of other zones.
    store_soft_limit_bytes: int = 8 * GIB
    # Kept above the soft limit for deletes, acks and the feed, which make room again.
    store_reserve_bytes: int = 64 * MIB
    # Free space of the disk below which nothing that grows is accepted: a full disk stops the process.
    disk_reserve_bytes: int = 256 * MIB
    # A day of twelve writes a second: a million backups. A pending create takes 3.6 KB of the quota with all that shows
    # it, an upload or another update 1 KB more.
    queue_depth_max: int = 1_000_000
    # Drained writes are kept so that they can be offered again to a restored registry.
    queue_retain_h: float = 7 * 24
    queue_retain_max_writes: int = 1_000_000
    # Parked, or put back by a retry, in one transaction: well below a tenth of a second, in which no request is served.
    park_batch_max: int = 100
    # Images remembered that got another number than the one they had in this zone.
    renumbered_max: int = 100_000
    # Taken back into the queue in one transaction when an epoch was lost.
    rewind_batch_max: int = 100
    # Removed per turn, so that pruning never holds up a request.
    prune_batch_max: int = 256
    # Operations in flight.
    session_window: int = SESSION_WINDOW_MAX
    # Verdicts, or changes of the feed, taken between two turns of the loop: under a millisecond, in which no request is
    # served.
    turn_rows_max: int = 2
    # After so many such turns what was taken is committed, although nobody waits for it and more is to come.
    commit_postponed_turns_max: int = 32
    # One request to the registry; below its body limit with room for the envelope.
    drain_batch_max_bytes: int = 512 * KIB

    # Offline time that the IDs on hand must last for at the current rate.
    runway_h: float = 24
    # Smallest and largest block asked for: two thousand creates before the rate is known; the registry's own bound.
    id_block_min: int = 2_000
    id_block_max: int = 1_000_000
    # Blocks on hand; more would mean that grants loop.
    id_blocks_max: int = 64
    # The rate is forgotten over this time: a burst must not buy IDs for a week.
    id_rate_window_s: float = 3600
    # A burst shows over this time, and half of what it takes in that one must last until more numbers are there: a few
    # requests to a registry that is slow, or has just lost its leader.
    id_burst_window_s: float = 20
    id_burst_s: float = 120
    # Numbers for less than this time, or less than this share of the smallest block, are said to be few.
    runway_warning_h: float = 4
    id_low_share: float = 0.25

    # Uplink: how long a request to the registry may take, and how the link is probed.
    uplink_deadline_s: float = 5
    # A registry 500 ms away answers on a new connection after three round trips; one that is silent for longer, or does
    # not even accept, is left for another peer.
    uplink_connect_s: float = 1
    uplink_attempt_s: float = 2
    # The interval is a small part of the lease; an election of the registry fits into the deadline.
    heartbeat_interval_s: float = 0.5
    heartbeat_deadline_s: float = 1.5
    # Failed heartbeats after which the zone counts as degraded.
    heartbeat_failures_max: int = 2
    retry_delay_min_s: float = 0.2
    retry_delay_max_s: float = 5
    # How long a client waits for the registry's verdict: on an image of another zone, or because it asks for that.
    registry_wait_max_s: float = 30
    # Feed changes applied in one transaction, and those read ahead.
    feed_batch_max: int = 256
    # No heartbeat of the feed for so long: the stream is dead even if the connection is not.
    feed_silence_max_s: float = 5
    # Projects of a tenant set: no more are named to the registry in one request, whose first line they must fit.
    tenants_max: int = 128
    tenants_query_max_bytes: int = 7 * KIB
    # What the registry said of its state that the catalogue has yet to catch up with: two minutes of heartbeats.
    confirmations_max: int = 256
    zones_refresh_s: float = 30
    # How long a client that has seen a newer revision elsewhere waits for this catalogue to reach it.
    revision_wait_max_s: float = 2

    # Bodies and answers.
    json_body_max_bytes: int = MIB
    # Time in which such a body must have come.
    json_body_max_s: float = 30
    image_max_bytes: int = 10 << 40
    page_images_default: int = 25
    page_images_max: int = 1000
    # Rows read for one page of a filtered list; then the page ends early and its `next` goes on.
    list_scan_max: int = 20_000
    # Of such scans for one page of v1, which has no `next`: a million rows, some ten seconds.
    list_full_scans_max: int = 50
    # UUIDs of deleted images, which a create can't have again; some tens of MiB.
    deleted_uuids_max: int = 1_000_000
    # Rows read between two turns of the loop.
    list_chunk_rows: int = 500
    # Images with equal first sort key that are put in order in memory.
    list_group_max: int = 5_000
    name_max_chars: int = 255
    tag_max_chars: int = 255
    tags_max: int = 128
    # As many as the registry takes.
    members_max: int = 128
    properties_max: int = 128
    property_value_max_bytes: int = 64 * KIB
    metadata_max_bytes: int = 64 * KIB
    patch_operations_max: int = 1000

    # Image data.
    data_chunk_bytes: int = MIB
    # Such chunks of one upload on their way to the disk and the digests: what any of the three may lag behind.
    data_batches_max: int = 4
    data_store_max_bytes: int = 1 << 60
    data_cache_max_bytes: int = 50 * GIB
    # Beside these, pinned ones: base images that a zone must have, and of which an operator decides.
    data_pinned_max_bytes: int = 50 * GIB
    # Fetches ahead of any client: few, so that the link and the disk stay with those who wait.
    prefetch_running_max: int = 2
    # Images that wait for it; a scan of the catalogue, which comes now and then, waits where there are more.
    prefetch_queue_max: int = 1000
    prefetch_scan_s: float = 300
    # After a failure it comes sooner, and less soon after each further one.
    prefetch_retry_min_s: float = 5
    # What a connection may have received and nobody read yet; a body is read in pieces of up to twice this.
    read_buffer_bytes: int = 512 * KIB
    # How long the rest of a body that was refused is read and dropped: a client that can't send it does not hear why.
    refused_body_max_s: float = 60
    uploads_max: int = 64
    downloads_max: int = 512
    # Seconds without progress of an uploading or a downloading client, or of the zone that data is fetched from.
    upload_idle_max_s: float = 60
    download_idle_max_s: float = 60
    fetch_idle_max_s: float = 10
    fetch_attempts_max: int = 5
    interzone_streams_max: int = 128
    # Swift and S3: how long a connection may take to come, how long an answer or the next bytes of one, and how long
    # the last bytes of an upload may take to all their disks. A passing failure is tried again after a delay.
    store_connect_max_s: float = 5
    store_idle_max_s: float = 30
    store_put_wait_max_s: float = 300
    store_attempts_max: int = 3
    store_retry_delay_s: float = 0.5
    # What is read of a store's complaint, for the log and the answer.
    store_complaint_max_bytes: int = 1000
    # Swift takes no object above 5 GiB, and by default no manifest of more than 1000 segments.
    swift_segment_bytes: int = 4 * GIB
    swift_segments_max: int = 1000
    # Parts of an S3 upload are held in memory, this many on their way beside the one that fills. S3 takes 10,000.
    s3_part_bytes: int = 16 * MIB
    s3_parts_at_once_max: int = 2
    s3_parts_max: int = 10_000
    # How long another zone may take to bring the last bytes to its disk, which a slow one does in one fsync.
    interzone_put_wait_max_s: float = 300
    # Keys that were withdrawn before their data came: a broken connection holds what was sent on it for moments only.
    withdrawn_keys_max: int = 1024
    # How long a zone that holds a copy which nobody owns is left alone after it could not be reached.
    far_garbage_retry_s: float = 30
    # How often the end of a delay is looked for, and images that a resync did not find are asked for again.
    deletions_look_s: float = 60
    # Bytes without an owner are told of only after this time, and so many at once; the scan for their owners goes
    # through all metadata for so many of them.
    orphan_age_min_h: float = 24
    orphans_list_max: int = 10_000
    orphans_scan_max: int = 200_000
    fates_ask_s: float = 600
    # Images in one request about deletions; as many as the registry takes.
    deletions_batch_max: int = 512
    # A zone that answers is near; a list of stores must not wait for one that does not, and asks each once in a while.
    store_probe_max_s: float = 1.5
    store_probe_keep_s: float = 5
    # How long a zone that did not answer is not asked for data: its clients hear so at once meanwhile.
    zone_away_keep_s: float = 5

    # Imports. Each one that runs fills a disk or a link: a few at a time, the others wait in the order they came.
    imports_running_max: int = 4
    imports_pending_max: int = 256
    # A job that ends the process each time it runs must not do so for ever.
    import_starts_max: int = 3
    # What is known of an import that is over; the number bounds memory.
    import_results_keep_h: float = 48
    import_results_max: int = 1000
    # Images with bytes that wait for their import, and how long they may: as long as drained writes are kept.
    staged_images_max: int = 1000
    staged_keep_h: float = 7 * 24
    # web-download: a source without progress is given up, one that drips is too, in the end.
    web_idle_max_s: float = 30
    web_download_max_s: float = 24 * 3600
    web_redirects_max: int = 5
    web_uri_max_chars: int = 2048

    # Client programs told apart in the metrics of v1; the others are counted together.
    v1_user_agents_max: int = 32

    requests_max: int = 1024
    # What a stopping gateway waits for requests that are under way.
    shutdown_grace_s: float = 5


def limits_of(table: dict[str, Any]) -> Limits:
    """The table [limits] of zonegw.toml. Raises ConfigError."""
    kinds = {f.name: f.type for f in fields(Limits)}
    for name, value in table.items():
        if name not in kinds:
            raise ConfigError(f"unknown bound limits.{name}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"limits.{name} must be a positive number")
        if kinds[name] is int and not isinstance(value, int):
            raise ConfigError(f"limits.{name} must be a whole number")
    if table.get("session_window", 1) > SESSION_WINDOW_MAX:
        raise ConfigError(f"limits.session_window must be at most {SESSION_WINDOW_MAX}: the registry remembers no more")
    return Limits(**table)
