"""Plays the transcripts in tests/transcripts (their README has the notation) on a real state."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from raftreg import queries
from raftreg.tables import View, pack
from tests.state_life import Document, Gateway, Life, a_state, uuid_of

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
_SHOWN_LAST = ("message", "image", "cause", "zone", "since", "token", "epoch_began")
_ALIAS = re.compile(r"@([\w-]+)")


class Player:
    """One transcript's state, gateways and names."""

    def __init__(self, view: View) -> None:
        self.life = Life(view)
        self.gateways: dict[str, Gateway] = {}
        self.sent: dict[tuple[str, int], Document] = {}
        self.names: dict[str, str] = {}

    def play(self, line: str) -> list[str]:
        """The lines of output for one line of input."""
        words = shlex.split(line, posix=False)
        if words[0] == "after":
            self.life.now_us += int(words[1]) * 1_000_000
            return []
        if words[0] == "feed":
            return [
                self._change(change) for change in queries.changes_since(self.life.view, int(words[1]), 99, 1 << 20)
            ]
        if "@" in words[0]:
            return [self._of_gateway(words[0], words[1], words[2:])]
        return [self._result(self.life.do(self._command(words))[0])]

    def _of_gateway(self, who: str, verb: str, words: list[str]) -> str:
        name, _, zone = who.partition("@")
        if verb == "open":
            gateway, session = self.gateways.get(who), self._uuid(words[0])
            if gateway is None or gateway.session != session:
                gateway = self.gateways[who] = Gateway(self.life, name, zone, words[0])
            (result,) = self.life.do(gateway.opening())
            gateway.token = result.get("ok", {}).get("token", 0)
            return self._result(result)
        if verb in ("carry", "skip", "repeat"):
            return self._result(self.life.do(self._operation(self.gateways[who], verb, words))[0])
        command = self._command([verb, *words]) | {"actor": {"gateway": name, "zone": zone}}
        if verb == "grant_block":
            command = self.gateways[who].asking(command["size"])
        return self._result(self.life.do(command)[0])

    def _operation(self, gateway: Gateway, verb: str, words: list[str]) -> Document:
        if verb == "repeat":
            return self.sent[gateway.session, int(words[0])]
        inner = self._command(words)
        if verb == "skip":
            return gateway.operation(gateway.sequence + 2, gateway.hash, pack(inner))
        command = gateway.carry(inner)
        self.sent[gateway.session, gateway.sequence] = command
        return command

    def _command(self, words: list[str]) -> Document:
        arguments = (word.partition("=") for word in words[1:])
        return {"op": words[0]} | {name: json.loads(self._resolved(value)) for name, _, value in arguments}

    def _resolved(self, text: str) -> str:
        return _ALIAS.sub(lambda match: self._uuid(match[1]), text)

    def _uuid(self, alias: str) -> str:
        uuid = uuid_of(alias)
        self.names[uuid] = f"@{alias}"
        return uuid

    def _result(self, result: Document) -> str:
        ((kind, value),) = result.items()
        if kind == "ok" and "sequence" in value:
            again = " replayed" if value.get("replayed") else ""
            return f"sequence {value['sequence']}{again}: {self._result(value['result'])}"
        if kind == "ok" and "results" in value:
            return "ok [" + "; ".join(self._result(inner) for inner in value["results"]) + "]"
        code = f"{value['code']} " if kind == "error" else ""
        return f"{kind} {code}{self._fields(value)}".rstrip()

    def _fields(self, value: Document) -> str:
        shown = {
            name: item for name, item in value.items() if name not in (*_SHOWN_LAST, "code") and type(item) is not bytes
        }
        if "cause" in value:
            shown["cause"] = value["cause"]["code"]
        return " ".join(f"{name}={self._named(item)}" for name, item in sorted(shown.items()))

    def _named(self, item: Any) -> str:
        text = json.dumps(item, separators=(",", ":"))
        for uuid, name in self.names.items():
            text = text.replace(f'"{uuid}"', name)
        return text

    def _change(self, change: Document) -> str:
        fields: Document = {
            name: change[name] for name in ("number", "version", "changed", "deleted", "fenced") if name in change
        }
        return f"{change['revision']} {change['op']} {self._fields(fields)}".rstrip()


def played(text: str) -> str:
    """The transcript with the answers that the state machine gives."""
    lines: list[str] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        player = Player(stack.enter_context(a_state(directory)))
        for line in text.splitlines():
            if line.startswith("> "):
                lines += [line, *player.play(line[2:])]
            elif line.startswith("#") or not line:
                lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_a_transcript_plays_as_it_is_written(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "a transcript opens with the behaviour that it guards"
    assert played(text) == text


def test_there_are_transcripts_and_each_has_commands_and_answers() -> None:
    assert len(TRANSCRIPTS) >= 5
    for path in TRANSCRIPTS:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert any(line.startswith("> ") for line in lines)
        assert any(line.startswith(("ok", "error", "sequence")) for line in lines), path


if __name__ == "__main__":
    for transcript in TRANSCRIPTS:
        transcript.write_text(played(transcript.read_text(encoding="utf-8")), encoding="utf-8")
