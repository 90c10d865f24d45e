"""The configuration file of a peer: what is accepted, and what is refused with which sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from raftreg import config
from raftreg.config import ConfigError, Limits, PeerConfig, Timing, TlsFiles

VALID = """
name = "a"

[raft]
listen = "127.0.0.1:9590"
[raft.peers]
a = "127.0.0.1:9590"
b = "[::1]:9592"

[api]
listen = "127.0.0.1:9591"
tls = true
[api.peers]
a = "https://127.0.0.1:9591"

[tls]
ca = "tls/ca.pem"
cert = "tls/cert.pem"
key = "/secret/key.pem"
"""


def load(directory: Path, text: str) -> PeerConfig:
    (directory / config.FILE_NAME).write_text(text, encoding="utf-8")
    return config.load(directory)


def test_a_file_is_read_with_paths_relative_to_itself(tmp_path: Path) -> None:
    settings = load(tmp_path, VALID)
    assert settings.cluster_peers == ("a", "b")
    assert settings.data_dir == tmp_path.resolve()
    assert settings.tls == TlsFiles(
        tmp_path.resolve() / "tls/ca.pem", tmp_path.resolve() / "tls/cert.pem", Path("/secret/key.pem")
    )
    assert (settings.limits, settings.timing) == (Limits(), Timing())


def test_limits_and_timing_can_be_changed_one_by_one(tmp_path: Path) -> None:
    settings = load(tmp_path, VALID + "[limits]\npage_rows_max = 500\n[timing]\nturn_max_s = 3\n")
    assert settings.limits == dataclasses.replace(Limits(), page_rows_max=500)
    assert settings.timing == dataclasses.replace(Timing(), turn_max_s=3.0)
    assert isinstance(settings.timing.turn_max_s, float)


def test_what_is_rendered_is_read_back_as_it_was(tmp_path: Path) -> None:
    base = tmp_path.resolve() / 'with a space and "quotes"'
    base.mkdir()
    settings = PeerConfig(
        name="peer-1.x",
        data_dir=base,
        raft_listen="0.0.0.0:1",
        raft_peers={"peer-1.x": "10.0.0.1:1", "b": "b.example:2"},
        api_listen="127.0.0.1:0",
        api_tls=False,
        api_peers={"b": "http://b.example:3"},
        tls=TlsFiles(base / "tls/ca.pem", base / "tls/cert.pem", tmp_path.resolve() / "elsewhere.pem"),
        limits=dataclasses.replace(Limits(), feed_stall_max_s=1.5, feed_consumers_max=3),
        timing=dataclasses.replace(Timing(), tick_s=0.02),
    )
    assert load(base, config.render(settings, base)) == settings


OBSERVER = VALID.replace('name = "a"', 'name = "o"\nobserver = true').replace('[raft]\nlisten = "127.0.0.1:9590"\n', "")


def test_an_observer_lists_the_voters_and_listens_for_none_of_them(tmp_path: Path) -> None:
    settings = load(tmp_path, OBSERVER)
    assert settings.observer
    assert (settings.raft_listen, settings.cluster_peers) == ("", ("a", "b"))
    assert load(tmp_path, config.render(settings, tmp_path.resolve())) == settings
    with pytest.raises(ConfigError, match="lists the voters only"):
        load(tmp_path, OBSERVER.replace('name = "o"', 'name = "a"'))
    with pytest.raises(ConfigError, match=r"raft\.listen is not a known setting"):
        load(tmp_path, VALID.replace('name = "a"', 'name = "o"\nobserver = true'))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("name =", "nmae ="), "name is missing"),
        (('name = "a"', 'name = "c"'), "not among raft.peers"),
        (('name = "a"', "name = 7"), "name must be a string"),
        (("[tls]", "[tls]\ncolour = 1"), "tls.colour is not a known setting"),
        (("[tls]", "[limits]\npage_rows = 1\n[tls]"), "limits.page_rows is not a known setting"),
        (("[tls]", "[limits]\npage_rows_max = 0\n[tls]"), "must be above 0"),
        (("[tls]", "[limits]\npage_rows_max = 1.5\n[tls]"), "must be a whole number"),
        (("[tls]", "[limits]\npage_rows_max = true\n[tls]"), "must be a whole number"),
        (("[tls]", "[timing]\ntick_s = nan\n[tls]"), "must be above 0"),
        (("[tls]", "[timing]\nheartbeat_s = 0.2\n[tls]"), "half raft_min_timeout_s"),
        (("[tls]", "[limits]\nbody_bytes_max = 99999999\n[tls]"), "body_bytes_max"),
        (('listen = "127.0.0.1:9591"', 'listen = "9591"'), "HOST:PORT"),
        (('listen = "127.0.0.1:9591"', 'listen = "127.0.0.1:99999"'), "HOST:PORT"),
        (("tls = true", "tls = false"), "must start with http://"),
        (('"https://127.0.0.1:9591"', '"https://127.0.0.1"'), "HOST:PORT"),
        (('a = "https', 'z = "https'), "api.peers.z is not among raft.peers"),
        (("[tls]", "[tls"), "Expected"),
    ],
)
def test_a_mistake_is_refused_with_file_key_and_reason(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    assert change[0] in VALID
    with pytest.raises(ConfigError, match=config.FILE_NAME) as refused:
        load(tmp_path, VALID.replace(change[0], change[1], 1))
    assert sentence in str(refused.value)


def test_plain_http_is_refused_off_loopback(tmp_path: Path) -> None:
    open_to_all = VALID.replace("tls = true", "tls = false").replace("https://", "http://")
    assert not load(tmp_path, open_to_all).api_tls
    with pytest.raises(ConfigError, match="loopback"):
        load(tmp_path, open_to_all.replace('listen = "127.0.0.1:9591"', 'listen = "0.0.0.0:9591"'))


def test_a_directory_above_one_peer_names_it_and_above_several_does_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert load(tmp_path / "a", VALID) == config.load(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / config.FILE_NAME).write_text(VALID)
    with pytest.raises(ConfigError, match=r"several peers \(a, b\)"):
        config.load(tmp_path)


def test_a_directory_without_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raftreg init"):
        config.load(tmp_path)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, expected: bool) -> None:
    assert config.is_loopback(host) is expected
