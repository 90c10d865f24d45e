"""Configuration and tokens: what is wrong is said, with what to write instead."""

import json
import tomllib
from pathlib import Path

import pytest

from zonegw import auth, config
from zonegw.errors import ConfigError, Unauthenticated

GOOD = config.render(
    zone="fra", gateway="fra-1", data_dir="data", listen="127.0.0.1:9292", endpoints=["http://127.0.0.1:1"],
    tokens_file="tokens.json", limits={"runway_h": 12, "uploads_max": 3},
)  # fmt: skip


def test_what_render_writes_is_what_load_reads(tmp_path: Path) -> None:
    (tmp_path / "zonegw.toml").write_text(GOOD)
    loaded = config.load(tmp_path / "zonegw.toml")
    assert (loaded.zone, loaded.gateway, loaded.listen) == ("fra", "fra-1", ("127.0.0.1", 9292))
    assert loaded.data_dir == tmp_path / "data"
    assert loaded.auth.tokens_file == tmp_path / "tokens.json"
    assert (loaded.limits.runway_h, loaded.limits.uploads_max) == (12, 3)


def test_a_time_may_have_a_fraction_even_where_its_default_has_none(tmp_path: Path) -> None:
    (tmp_path / "zonegw.toml").write_text(GOOD.replace("runway_h = 12", "uplink_deadline_s = 2.5"))
    assert config.load(tmp_path / "zonegw.toml").limits.uplink_deadline_s == 2.5


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('zone = "fra"', "", "zone is missing"),
        ('zone = "fra"', 'zone = "f/r"', "zone must be"),
        ('zone = "fra"', 'zone = "fra"\nzoen = 1', "unknown key zoen"),
        ('listen = "127.0.0.1:9292"', 'listen = "9292"', "HOST:PORT"),
        ('listen = "127.0.0.1:9292"', 'listen = "127.0.0.1:99999"', "HOST:PORT"),
        ('endpoints = ["http://127.0.0.1:1"]', "endpoints = []", "list of URLs"),
        ('endpoints = ["http://127.0.0.1:1"]', 'endpoints = ["https://127.0.0.1:1"]', r"need \[tls\]"),
        ("[registry]", '[registry]\ntenants = "demo"', "list of project IDs"),
        ("[registry]", '[registry]\ntenants = [""]', "1 to 255 characters"),
        ("[registry]", f"[registry]\ntenants = {[str(n) for n in range(129)]}", "names 129 projects"),
        ("[registry]", f"[registry]\ntenants = {[c * 240 for c in 'abcdefghijklmnopqrstuvwxyzABCDE']}", "query_max"),
        ('methods = ["tokens"]', 'methods = ["keys"]', "auth.methods"),
        ('tokens_file = "tokens.json"', "", "set auth.tokens_file"),
        ("[images]", '[images]\nv1 = "no"', "images.v1 must be true or false"),
        ("uploads_max = 3", "uploads_max = 0", "positive"),
        ("uploads_max = 3", "uploads_max = 1.5", "whole number"),
        ("uploads_max = 3", "uploads = 3", "unknown bound"),
        ("[limits]", "[limits]\nsession_window = 256", "at most 255"),
        ("[limits]", '[tls]\nca = "x"\ncert = "x"\nkey = "x"\n[limits]', "there is no file"),
        ("[limits]", '[interzone]\nlisten = "127.0.0.1:1"\n[limits]', r"need \[tls\]"),
        ("[auth]", "[auth", "not TOML"),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_reason(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    (tmp_path / "zonegw.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=complaint):
        config.load(tmp_path / "zonegw.toml")


def test_everyone_is_an_administrator_on_loopback_or_by_explicit_will_only(tmp_path: Path) -> None:
    raw = tomllib.loads(GOOD)
    raw["auth"] = {"methods": ["none"]}
    assert config.parse(raw, tmp_path).auth.methods == ("none",)
    raw["images"]["listen"] = "0.0.0.0:9292"
    with pytest.raises(ConfigError, match="loopback"):
        config.parse(raw, tmp_path)
    raw["auth"]["allow_none_off_loopback"] = True
    assert config.parse(raw, tmp_path).auth.allow_none_off_loopback


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        config.load(tmp_path / "nowhere.toml")


def test_a_token_is_known_by_its_digest_alone_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = auth.create_token(path, user="u", project="p", roles=["member"])
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    who = auth.Authenticator(config.Auth(("tokens",), path)).identify(token)
    assert (who.user, who.project, who.is_admin) == ("u", "p", False)


def test_the_token_file_is_read_again_when_it_changes_and_kept_when_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first = auth.create_token(path, user="u", project="p", roles=["member"])
    authenticator = auth.Authenticator(config.Auth(("tokens",), path))
    second = auth.create_token(path, user="v", project="q", roles=["admin"])
    assert authenticator.identify(second).is_admin
    path.write_text("{broken")
    assert authenticator.identify(first).user == "u"
    path.write_text(json.dumps({"tokens": []}))
    with pytest.raises(Unauthenticated):
        authenticator.identify(first)


def test_a_gateway_does_not_start_with_a_broken_token_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    for text in ("{", "[]", '{"tokens": [{"sha256": "x"}]}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="token create"):
            auth.Authenticator(config.Auth(("tokens",), path))
