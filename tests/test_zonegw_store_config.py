"""[[stores]] of zonegw.toml: what is understood, and what is refused with the key to change."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from zonegw import config, store_config
from zonegw.errors import ConfigError
from zonegw.store_config import FilesystemConfig, S3Config, SwiftConfig

FILES = {"name": "default", "type": "filesystem", "directory": "data"}
SWIFT = {
    "name": "swift", "type": "swift", "auth": "v1", "auth_url": "https://swift.example/auth/v1.0/", "user": "a:b",
    "password_file": "secret", "container": "images",
}  # fmt: skip
KEYSTONE = SWIFT | {"name": "keystone", "auth": "v3", "project": "service", "region": "fra"}
S3 = {
    "name": "s3", "type": "s3", "endpoint": "https://s3.example", "bucket": "images", "access_key": "k",
    "secret_key_file": "secret",
}  # fmt: skip
PUBLIC = {"name": "default", "type": "swift", "zone": "ams", "auth": "none", "url": "https://x/v1/A", "container": "i"}


@pytest.fixture(autouse=True)
def _secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")


def test_entries_of_each_kind_are_understood_with_paths_from_the_files_directory(tmp_path: Path) -> None:
    files, swift, keystone, s3, public = store_config.parse([FILES, SWIFT, KEYSTONE, S3, PUBLIC], tmp_path)
    assert files == FilesystemConfig(name="default", directory=tmp_path / "data")
    assert isinstance(swift, SwiftConfig)
    assert (swift.auth_url, swift.password_file) == ("https://swift.example/auth/v1.0", tmp_path / "secret")
    assert isinstance(keystone, SwiftConfig)
    assert (keystone.project, keystone.user_domain, keystone.interface) == ("service", "Default", "public")
    assert isinstance(s3, S3Config)
    assert (s3.region, s3.virtual_hosted) == ("us-east-1", False)
    assert public.zone == "ams"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([FILES | {"type": "tape"}], "type must be one of filesystem, swift, s3"),
        ([FILES | {"directory": 5}], "directory must be a text"),
        ([{"name": "default", "type": "filesystem"}], "directory is missing"),
        ([FILES | {"max_bytes": 0}], "max_bytes must be a positive whole number"),
        ([FILES | {"default": "yes"}], "default must be true or false"),
        ([FILES | {"name": "a b"}], "name must be 1 to 63 letters"),
        ([FILES | {"name": "a.b"}], "name must be 1 to 63 letters"),
        ([FILES | {"name": "staging"}], "not 'staging'"),
        ([FILES, FILES], "two entries with the name 'default'"),
        ([FILES | {"default": True}, SWIFT | {"default": True}], "both have default = true"),
        ([SWIFT | {"password": "hunter2"}], "secrets stand in files: password_file"),
        ([SWIFT | {"password_file": "gone"}], "there is no file"),
        ([SWIFT | {"auth": "v2"}], "auth must be one of v1, v3, none"),
        ([SWIFT | {"auth": "v3"}], 'project is missing, which auth = "v3" needs'),
        ([SWIFT | {"auth_url": "swift.example"}], "is no URL"),
        ([SWIFT | {"container": "a/b"}], "without a slash"),
        ([SWIFT | {"auth": "none", "url": "https://x/v1/A"}], "reads a public container"),
        ([S3 | {"secret_key": "hunter2"}], "secrets stand in files"),
        ([{name: value for name, value in S3.items() if name != "access_key"}], "belong together"),
        ([{"name": "s", "type": "s3", "endpoint": "https://x", "bucket": "b"}], "writes to its own stores"),
        ([FILES | {"zone": "ams"}], "is read through Swift or S3"),
        ([S3 | {"zone": "ams", "default": True}], "is no default"),
        ([PUBLIC | {"url": ""}], "url must be a text"),
        ({"name": "default"}, "write each store as a table"),
    ],
)
def test_an_entry_that_can_not_be_used_is_refused_with_what_to_change(
    tmp_path: Path, entries: object, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        store_config.parse(entries, tmp_path)


def test_a_secret_that_was_written_into_the_file_is_not_repeated_in_the_complaint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        store_config.parse([SWIFT | {"password": "hunter2"}], tmp_path)
    assert "hunter2" not in str(refused.value)


def test_the_own_zone_is_not_named_in_an_entry(tmp_path: Path) -> None:
    text = config.render(zone="fra", gateway="g", data_dir="d", listen="127.0.0.1:0", endpoints=["http://x"])
    raw = tomllib.loads(text) | {"stores": [PUBLIC | {"zone": "fra"}]}
    with pytest.raises(ConfigError, match="leave zone out"):
        config.parse(raw, tmp_path)
