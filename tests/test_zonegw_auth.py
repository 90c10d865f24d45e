"""The token file: read again when it changes, and kept as it was when it goes bad."""

import logging
from pathlib import Path

import pytest

from zonegw.auth import TokenFile, create_token


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
