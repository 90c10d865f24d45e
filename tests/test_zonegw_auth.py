"""The token file: read again when it changes, and kept as it was when it goes bad."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from raftreg import commands
from zonegw.auth import NAME_CHARS_MAX, ROLES_MAX, TokenFile, create_token
from zonegw.errors import ConfigError


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe", b"[]", b'{"tokens": [1]}'])
def test_a_file_that_went_bad_keeps_the_last_good_tokens_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: bytes
) -> None:
    path = tmp_path / "tokens.json"
    token = create_token(path, user="u", project="p", roles=["member"])
    tokens = TokenFile(path)
    good = path.read_bytes()
    path.write_bytes(bad)
    with caplog.at_level(logging.ERROR):
        assert [tokens.find(token) is not None for _ in range(3)] == [True] * 3
    assert len(caplog.records) == 1
    path.write_bytes(good + b" ")
    assert tokens.find(token) is not None
    path.write_text('{"tokens": []}')
    assert tokens.find(token) is None


@pytest.mark.parametrize(
    "wrong",
    [{"user": 7}, {"user": "u" * 256}, {"project": None}, {"roles": ["a\x00"]}, {"roles": [str(n) for n in range(65)]}],
)
def test_an_identity_that_the_registry_would_refuse_as_actor_is_not_taken(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    path = tmp_path / "tokens.json"
    row = {"sha256": "0" * 64, "user": "u", "project": "p", "roles": ["member"]} | wrong
    path.write_text(json.dumps({"tokens": [row]}))
    with pytest.raises(ConfigError):
        TokenFile(path)
    assert (NAME_CHARS_MAX, ROLES_MAX) == (commands.ACTOR_CHARS_MAX, commands.ACTOR_ROLES_MAX)


def test_a_token_of_such_an_identity_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = create_token(path, user="u", project="p", roles=["member"])
    with pytest.raises(ConfigError):
        create_token(path, user="u" * 256, project="p", roles=["member"])
    assert TokenFile(path).find(token) is not None
