"""Secrets of stores, which stand in files of their own."""

from pathlib import Path

from zonegw.errors import DataUnavailable


def secret(path: Path | None) -> str:
    """What the file holds, read each time: a changed secret needs no restart. Raises DataUnavailable."""
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataUnavailable(f"the secret in {path} can't be read: {error}") from error
