"""A store of each kind, made from its entry in zonegw.toml."""

from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.data_stores.interface import DataStore
from zonegw.data_stores.s3 import S3Store
from zonegw.data_stores.swift import SwiftStore
from zonegw.limits import Limits
from zonegw.store_config import FilesystemConfig, S3Config, StoreConfig, SwiftConfig


def opened(config: StoreConfig, limits: Limits) -> DataStore:
    """Nothing is asked of a store that lies elsewhere yet: it may be away when the gateway starts."""
    if isinstance(config, FilesystemConfig):
        return FilesystemStore(
            config.directory, max_bytes=config.max_bytes or limits.data_store_max_bytes,
            disk_reserve_bytes=limits.disk_reserve_bytes, chunk_bytes=limits.data_chunk_bytes,
            batches_max=limits.data_batches_max, name=config.name,
        )  # fmt: skip
    if isinstance(config, SwiftConfig):
        return SwiftStore(config, limits)
    if isinstance(config, S3Config):
        return S3Store(config, limits)
    raise AssertionError(f"{type(config).__name__} is no kind of store")
