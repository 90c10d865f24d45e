"""Who is asking: the identity behind an X-Auth-Token.

The token file is JSON, {"tokens": [{"sha256", "user", "project", "roles"}]}: it holds digests, never tokens. It is read
again when it changes; a file that cannot be read any more keeps the tokens of the last good one and is logged.
"""

import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from zonegw.config import Auth
from zonegw.errors import ConfigError, Unauthenticated
from zonegw.identity import Identity

log = logging.getLogger(__name__)

TOKEN_BYTES = 32
TOKENS_MAX = 100_000
# As the registry takes them in the actor of a command: a write of anybody else would be acknowledged, then parked.
NAME_CHARS_MAX = 255
ROLES_MAX = 64


class TokenFile:
    """Static tokens by digest, read again whenever the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._identities: dict[str, Identity] = {}
        self._reload(first=True)

    def find(self, token: str) -> Identity | None:
        self._reload()
        return self._identities.get(digest(token))

    def _reload(self, *, first: bool = False) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                text = self._path.read_text(errors="replace")
                self._stamp = stamp  # what was read and is bad is complained of once, not with every request
                self._identities = parse_tokens(text, self._path)
        except (OSError, ConfigError) as error:
            if first:
                raise ConfigError(f"token file: {error}") from error
            log.error("token file kept as it was last read: %s", error)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def parse_tokens(text: str, path: Path) -> dict[str, Identity]:
    """Identities by token digest. Raises ConfigError."""
    try:
        rows = json.loads(text)["tokens"]
        if len(rows) > TOKENS_MAX:
            raise ConfigError(f"{path} has more than {TOKENS_MAX} tokens")
        return {row["sha256"]: _identity(row) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a token file ({error!r}); make one with `zonegw token create`") from error


def _identity(row: dict[str, Any]) -> Identity:
    """The identity of one row. Raises KeyError, TypeError, ValueError."""
    roles = frozenset(row["roles"])
    for text in (row["user"], row["project"], *roles):
        if not isinstance(text, str) or len(text) > NAME_CHARS_MAX or "\x00" in text:
            raise ValueError(f"{text!r:.60} is no name of at most {NAME_CHARS_MAX} characters")
    if len(roles) > ROLES_MAX:
        raise ValueError(f"{row['user']} has more than {ROLES_MAX} roles")
    return Identity(row["user"], row["project"], roles)


class Authenticator:
    """Tries the configured methods in order."""

    def __init__(self, auth: Auth) -> None:
        self._tokens = TokenFile(auth.tokens_file) if "tokens" in auth.methods and auth.tokens_file else None
        self._everyone: Identity | None = None
        if "none" in auth.methods:
            self._everyone = Identity("anonymous", auth.none_project, frozenset({"admin"}))

    def identify(self, header: str | None) -> Identity:
        """The identity of an X-Auth-Token header; glanceclient percent-encodes it. Raises Unauthenticated."""
        if header and self._tokens is not None:
            found = self._tokens.find(header) or self._tokens.find(unquote(header))
            if found is not None:
                return found
        if self._everyone is not None:
            return self._everyone
        raise Unauthenticated("the X-Auth-Token is not known here" if header else "send a token in X-Auth-Token")


def create_token(path: Path, *, user: str, project: str, roles: list[str]) -> str:
    """Add a new token to the file, which is made if need be, and return it: it is stored nowhere else."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        parse_tokens(path.read_text(), path)
        rows = json.loads(path.read_text())["tokens"]
    token = secrets.token_hex(TOKEN_BYTES)  # no dash in front, which command lines would take for an option
    rows.append({"sha256": digest(token), "user": user, "project": project, "roles": sorted(set(roles))})
    parse_tokens(json.dumps({"tokens": rows}), path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump({"tokens": rows}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
    return token
