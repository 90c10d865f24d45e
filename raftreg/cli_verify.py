"""`raftreg verify`: do all peers hold the same state, and is what they hold what was written?"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table

from raftreg import config, errors
from raftreg.cli_connection import DONE, FAILED, Commands, add_connection, ask, explained, print_json
from raftreg.cli_progress import bar, bars
from raftreg.client import Client

_EXAMPLES = """\
  raftreg verify
  raftreg verify --scrub
  raftreg verify --offline /srv/registry/a
"""
_COMMON_INDEX_S = 10.0
"""How long an index is looked for at which all peers know their digest; at rest the first look finds one."""
_LOOK_PERIOD_S = 0.1
_AHEAD = 3
"""An index so many times as far ahead as the peers came between two looks is noted by all before they pass it."""
_ANSWER_S = 5.0
"""One answer of a peer that reads its rows at full speed."""
_SCRUB_POLL_S = 0.5
_SCRUB_SILENCE_S = 10.0
"""A peer that has not answered for so long while it was scrubbed is given up."""
_AGREES, _DEVIATES, _AWAY, _NOT_COMPARED = "agrees", "deviates", "away", "not compared"
_STYLES = {_AGREES: "green", _DEVIATES: "bold red", _AWAY: "red", _NOT_COMPARED: "yellow"}
_COLUMNS = ("peer", "role", "applied", "digest", "scrub", "verdict")
_DIGEST_SHOWN = 12

Answer = dict[str, Any] | errors.RegistryError


def add(commands: Commands) -> None:
    verify = commands.add_parser(
        "verify",
        help="compare the digests of all peers; --scrub reads every row again; --offline checks a stopped peer",
        description="Exit status 0 when every peer agrees and nothing is damaged, 1 otherwise. --offline opens the "
        "store below DIR for reading only, while its peer is stopped, and needs memory for all its images.",
        **explained(_EXAMPLES),
    )
    add_connection(verify)
    verify.add_argument("--scrub", action="store_true", help="have every peer read all its rows again first, and wait")
    verify.add_argument("--offline", type=Path, metavar="DIR", help="check the store of this stopped peer instead")
    verify.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return _offline(arguments) if arguments.offline is not None else _online(arguments)


# -- online -------------------------------------------------------------------------------------------------------


@dataclass
class Verification:
    """What all peers said. `index` is None when there was none at which all of them knew their digest."""

    index: int | None
    answers: dict[str, Answer]
    troubles: list[str] = field(default_factory=list)

    def digest(self, url: str) -> str | None:
        answer = self.answers[url]
        if isinstance(answer, errors.RegistryError) or self.index is None:
            return None
        digest: str | None = answer["digests"].get(str(self.index))
        return digest

    def verdicts(self) -> dict[str, str]:
        """By URL. Where no majority of all peers agrees, all that were heard deviate from each other."""
        digests = {url: self.digest(url) for url in self.answers}
        counts = Counter(digest for digest in digests.values() if digest is not None)
        alike = len(counts) == 1
        right = next((digest for digest, count in counts.items() if alike or count * 2 > len(digests)), None)
        return {url: self._verdict(url, digest, right) for url, digest in digests.items()}

    def _verdict(self, url: str, digest: str | None, right: str | None) -> str:
        if isinstance(self.answers[url], errors.RegistryError):
            return _AWAY
        return _NOT_COMPARED if digest is None else _AGREES if digest == right else _DEVIATES

    def damages(self) -> list[str]:
        """One sentence for everything that peers know to be wrong with their own data."""
        sentences = []
        for answer in self.answers.values():
            if not isinstance(answer, errors.RegistryError):
                known = answer["errors"]
                found = (answer["scrub"] or {}).get("findings", [])
                news = [sentence for sentence in found if not any(sentence in error for error in known)]
                sentences += [f"{answer['name']}: {sentence}" for sentence in (*known, *news)]
        return sentences

    @property
    def sound(self) -> bool:
        return not self.troubles and not self.damages() and set(self.verdicts().values()) == {_AGREES}


def _online(arguments: argparse.Namespace) -> int:
    async def verify(client: Client) -> Verification:
        troubles = await _scrub(client) if arguments.scrub else []
        found = await compare(client)
        found.troubles += troubles
        return found

    found = ask(arguments, verify)
    if arguments.json:
        print_json(_document(found))
    else:
        _show(found)
    return DONE if found.sound else FAILED


async def compare(client: Client) -> Verification:
    """Ask all peers until there is an index at which each that answers knows its digest, for a bounded time."""
    deadline, wanted, before = time.monotonic() + _COMMON_INDEX_S, None, None
    while True:
        answers = await client.each("GET", "digest", params={"index": wanted}, deadline_s=_ANSWER_S)
        heard = [answer for answer in answers.values() if not isinstance(answer, errors.RegistryError)]
        index = common_index(heard)
        if index is not None or not heard or time.monotonic() > deadline:
            return Verification(index, answers)
        top = max(answer["applied"] for answer in heard)
        wanted, before = top + _AHEAD * (top - (top if before is None else before)), top
        await asyncio.sleep(_LOOK_PERIOD_S)


def common_index(answers: list[dict[str, Any]]) -> int | None:
    """The highest index at which all of them know their digest; None also when they count digests differently."""
    if not answers or len({answer["version"] for answer in answers}) > 1:
        return None
    shared = set.intersection(*({int(index) for index in answer["digests"]} for answer in answers))
    return max(shared, default=None)


async def _scrub(client: Client) -> list[str]:
    """Have every peer read all its rows; returns what went wrong with that."""
    with bars(TextColumn("{task.completed:.0f}/{task.total:.0f} rows")) as progress:
        peers: dict[str, _Scrubbed] = {}
        while not peers or not all(peer.over for peer in peers.values()):
            starting = not peers or any(peer.number is None and not peer.over for peer in peers.values())
            # A peer that has begun joins the pass under way when it is asked once more.
            answers = await client.each("POST", "scrub", deadline_s=_ANSWER_S) if starting else {}
            for url, answer in answers.items():
                peers.setdefault(url, _Scrubbed(url, progress)).begin(answer)
            for url, answer in (await client.each("GET", "digest", deadline_s=_ANSWER_S)).items():
                peers[url].follow(answer)
            await asyncio.sleep(_SCRUB_POLL_S)
    return [peer.trouble for peer in peers.values() if peer.trouble is not None]


class _Scrubbed:
    """One peer while it reads all its rows. `number` is that of its pass, once it has begun."""

    def __init__(self, url: str, progress: Progress) -> None:
        self._url, self._progress = url, progress
        self._bar = progress.add_task(url, total=1)
        self._heard_at = time.monotonic()
        self.number: int | None = None
        self.over = False
        self.trouble: str | None = None

    def begin(self, answer: Answer) -> None:
        if self.number is not None or self.over:
            return
        if not isinstance(answer, errors.RegistryError):
            self.number = answer["pass"]
            self._heard_at = time.monotonic()
        elif not isinstance(answer, errors.Indefinite | errors.Unavailable) or self._is_silent():
            self._end(f"{self._url} was not scrubbed: {answer.message}")

    def follow(self, answer: Answer) -> None:
        if isinstance(answer, errors.RegistryError):
            if not self.over and self._is_silent():
                self._end(f"{self._url} was not scrubbed: {answer.message}")
            return
        if self.number is not None:
            self._heard_at = time.monotonic()
        scrub = answer["scrub"]
        total = max(1, scrub["rows_total"])
        self._progress.update(self._bar, description=answer["name"], total=total, completed=scrub["rows"])
        if self.number is None or self.over:
            return
        if scrub["finished"] >= self.number:
            self._progress.update(self._bar, completed=total)
            self._end(None)
        elif scrub["pass"] < self.number:
            self._end(f"{answer['name']} was started anew while it was scrubbed")

    def _is_silent(self) -> bool:
        """Whether it neither began nor, since it did, said how far it is."""
        return time.monotonic() - self._heard_at > _SCRUB_SILENCE_S

    def _end(self, trouble: str | None) -> None:
        self.over, self.trouble = True, trouble


def _document(found: Verification) -> dict[str, Any]:
    verdicts = found.verdicts()
    peers = {}
    for url, answer in found.answers.items():
        said = answer.to_wire() if isinstance(answer, errors.RegistryError) else answer
        peers[url] = {**said, "verdict": verdicts[url], "digest": found.digest(url)}
    return {"sound": found.sound, "index": found.index, "troubles": [*found.troubles, *found.damages()], "peers": peers}


def _show(found: Verification) -> None:
    verdicts = found.verdicts()
    at = "no common index" if found.index is None else f"at index {found.index}"
    table = Table(title=f"digests {at}")
    for heading in _COLUMNS:
        table.add_column(heading, overflow="fold")
    for url, answer in found.answers.items():
        verdict = f"[{_STYLES[verdicts[url]]}]{verdicts[url]}[/]"
        if isinstance(answer, errors.RegistryError):
            table.add_row(escape(url), *[""] * (len(_COLUMNS) - 2), verdict)
            continue
        digest = (found.digest(url) or "")[:_DIGEST_SHOWN]
        table.add_row(answer["name"], answer["role"], str(answer["applied"]), digest, _scrub_state(answer), verdict)
    Console().print(table)
    for line in [*found.troubles, *found.damages(), *_away(found)]:
        print(line)
    if found.index is None and len(_away(found)) < len(found.answers):
        print(f"within {_COMMON_INDEX_S:g} s there was no index at which all peers know their digest: one lags?")


def _away(found: Verification) -> list[str]:
    return [answer.message for answer in found.answers.values() if isinstance(answer, errors.RegistryError)]


def _scrub_state(answer: dict[str, Any]) -> str:
    scrub = answer["scrub"]
    if scrub is None or (not scrub["running"] and not scrub["finished"]):
        return "none yet"
    if scrub["running"] and not scrub["finished"]:
        return f"first: {100 * scrub['rows'] // max(1, scrub['rows_total'])} %"
    return f"{scrub['finished_age_s'] / 60:.0f} min ago"


# -- offline ------------------------------------------------------------------------------------------------------


def _offline(arguments: argparse.Namespace) -> int:
    # Only here: the other commands need neither LMDB nor the state machine.
    from raftreg import offline_check

    directory: Path = arguments.offline
    data_dir = directory if (directory / "store").is_dir() else config.load(directory).data_dir
    with bar("reading rows") as progress:
        report = offline_check.check(data_dir, progress)
    if arguments.json:
        print_json({"sound": not report.findings, **dataclasses.asdict(report)})
    else:
        print(
            f"peer {report.peer}: {report.log_entries} log entries, {report.rows} rows, applied {report.applied}, "
            f"digest {report.digest}"
        )
        for finding in report.findings:
            print(finding)
        print("damaged: move the directory away and run `raftreg rejoin`" if report.findings else "sound")
    return FAILED if report.findings else DONE
