"""A registry goes from this release to the next one, process by process, back by one step, and on for good."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftreg.client import Client, client_ssl_context
from raftreg.config import load
from raftreg.errors import RegistryError
from tests.registry import free_ports, until
from tests.serving_peers import READY_S, wait_until_ready
from tests.test_cli import COMMAND, peer_arguments, raftreg

THIS = COMMAND
NEXT = [sys.executable, "-m", "tests.next_release"]
ROOT = Path(__file__).resolve().parents[2]
OBSERVER = "o"


class Peers:
    """Processes of one cluster, each of the release that it is started with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, release: list[str]) -> None:
        options = ["--observer"] if name == OBSERVER else []
        with (self.directory / f"{name}.log").open("ab") as log:
            command = [*release, "serve", *options, str(self.directory / name)]
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        process.wait(30)

    def exchange(self, name: str, release: list[str]) -> None:
        """Another release on the same directory."""
        self.stop(name)
        self.start(name, release)

    def kill(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait(10)

    def command(self, *arguments: object, status: int = 0) -> str:
        return raftreg(*arguments, "--config", self.directory, status=status)

    def level(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.command("level", "show", "--json"))
        return told

    async def told_by(self, name: str) -> dict[str, Any] | None:
        """What a peer says of itself; None while it does not answer."""
        tls = self.directory / "clients" / "operator" / "tls"
        context = client_ssl_context(tls / "ca.pem", tls / "cert.pem", tls / "key.pem")
        async with Client([f"https://{load(self.directory / name).api_listen}"], ssl=context) as client:
            (answer,) = (await client.peer_status()).values()
        return None if isinstance(answer, RegistryError) else answer

    async def is_refused(self, name: str) -> None:
        """Until a peer says that the others do not let it in."""
        sentence = "it supports feature level 1, the registry has level 2: start a newer release there"

        async def says_so() -> bool:
            said = await self.told_by(name)
            return said is not None and any(sentence in error for error in said["errors"])

        await until(says_so, READY_S)

    async def agree(self, names: str) -> None:
        """Until these are linked, of level 2 and equally far."""

        async def equal() -> bool:
            told = [said for name in names if (said := await self.told_by(name)) is not None]
            levels, indexes = {said["level"]["in_force"] for said in told}, {said["applied"] for said in told}
            return (len(told), levels, len(indexes)) == (len(names), {2}, 1)

        await until(equal, READY_S)
        self.command("verify")


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    directory = tmp_path / "my registry"
    observer = f"{OBSERVER}=127.0.0.1:{free_ports(1)[0]}"
    raftreg("init", directory, *peer_arguments("abc"), "--observer", observer, "--offline")
    made = Peers(directory)
    yield made
    made.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_cluster_is_upgraded_one_by_one_may_go_back_and_raises_its_level_for_good(peers: Peers) -> None:
    for name in "abco":
        peers.start(name, THIS)
    wait_until_ready(peers.directory, "abc")
    for number in range(3):
        peers.command("image", "create", "--name", f"image {number}")

    # Mixed: everything works, and nobody can raise the level by mistake.
    for name in "ab":
        peers.exchange(name, NEXT)
        wait_until_ready(peers.directory, "abc")
    peers.command("image", "create", "--name", "in a mixed cluster")
    told = peers.level()
    assert (told["in_force"], told["highest"]) == (1, 2)
    assert [member["name"] for member in told["held_back_by"]] == ["c", "o"]
    assert "feature level 2 is held back by voter c, observer o" in peers.command("status")
    refused = "feature level 2 is held back by voter c (supports 1), observer o (supports 1) [level_held_back]"
    assert refused in peers.command("level", "raise", status=1)

    # One step back, and on again.
    peers.exchange("b", THIS)
    wait_until_ready(peers.directory, "abc")
    peers.command("verify")
    for name in "bc":
        peers.exchange(name, NEXT)
        wait_until_ready(peers.directory, "abc")
    peers.stop(OBSERVER)

    assert "all support feature level 2: `raftreg level raise`" in peers.command("level", "show")
    assert peers.command("level", "raise") == "feature level 2 is in force\n"
    await peers.agree("abc")

    # What supports less is kept out, says why, and comes back with the next release.
    peers.start(OBSERVER, THIS)
    await peers.is_refused(OBSERVER)
    peers.exchange(OBSERVER, NEXT)
    await peers.agree("abco")
    peers.stop("c")
    raftreg_c = raftreg("serve", peers.directory / "c", status=1)
    assert "feature level 2, this release reads up to 1: start a release that supports feature level 2" in raftreg_c
    (peers.directory / "c" / "store").rename(peers.directory / "c" / "store.before")
    raftreg("rejoin", peers.directory / "c")
    peers.start("c", THIS)
    await peers.is_refused("c")
    peers.exchange("c", NEXT)
    wait_until_ready(peers.directory, "abc")
    await peers.agree("abco")
