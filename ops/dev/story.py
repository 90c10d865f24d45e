"""The story: a registry and two zones, broken and healed before your eyes. `make run`; ONCE=1 ends after the table.

It runs the real thing: three peers, two gateways, the OpenStack client, a backup job. What was lost or doubled is
counted by chaos.validate from the history of answers. Exit status 0 only if nothing was.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chaos import history
from chaos.history import History
from chaos.links import LinkError
from chaos.validate import Verdict, judge
from ops.dev import environment, setup
from ops.dev.backup_job import BackupError, BackupJob, ImagesApi
from ops.dev.cluster import RUN_DIR, Cluster, ClusterError, alone, forget_caller, read_state, show, stop_left
from ops.dev.probe import Probe
from ops.dev.processes import ProcessError
from ops.dev.readout import client_of, registry_images

BACKUPS = 300
BASE_IMAGE_BYTES = 8 * 1024 * 1024
# Backups that are downloaded again while the zone is cut off.
DOWNLOADS = 10
# Any single step on a busy machine; the whole story stays below two minutes.
STEP_TIMEOUT_S = 45.0
GLANCE_TIMEOUT_S = 60.0
# How often the story looks at what changes by itself.
LOOK_EVERY_S = 0.1
HOME, AWAY = "ams", "fra"


class StoryError(Exception):
    """A step didn't show what it should. The message says what was seen, and which log to look at."""


@dataclass
class Numbers:
    """What the closing table shows beside the verdict. Times are seconds."""

    failover_s: float = 0.0
    registry_away_s: float = 0.0
    degraded_s: float = 0.0
    drain_s: float = 0.0
    feed_lag_s: float = 0.0


class Story:
    """One run: its cluster, the history of answers, and the steps in order."""

    def __init__(self, cluster: Cluster, console: Console) -> None:
        self.cluster, self.console = cluster, console
        self.seed = int.from_bytes(os.urandom(4))
        self.history = History(cluster.base / "history.jsonl")
        self.numbers = Numbers()
        self.home, self.away = ImagesApi(cluster.zones[HOME]), ImagesApi(cluster.zones[AWAY])
        self.job = BackupJob(self.away, f"{AWAY}-1", self.history, count=BACKUPS, seed=self.seed)
        self.base_uuid = str(uuid.uuid4())
        self._base_file = cluster.base / "base.img"
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )

    async def tell(self) -> Verdict:
        """All steps; raises StoryError at the first that doesn't show what it should."""
        async with self.home, self.away:
            await self._base_image()
            with self._progress:
                await self._backups()
            await self._see_all_at_home()
            return await self._judge()

    def _say(self, text: str) -> None:
        self.console.print(f"[bold cyan]•[/] {text}", highlight=False)

    async def _base_image(self) -> None:
        self._say(f"[bold]A base image[/] is uploaded in {HOME} with the unmodified glance command.")
        data = random.Random(self.seed).randbytes(BASE_IMAGE_BYTES)
        self._base_file.write_bytes(data)
        sha512 = hashlib.sha512(data).hexdigest()
        create = self.history.invoke("glance", "create", uuid=self.base_uuid, gateway=f"{HOME}-1")
        upload = self.history.invoke("glance", "upload", uuid=self.base_uuid, sha512=sha512, size=len(data))
        names = ["--id", self.base_uuid, "--name", "base", "--disk-format", "raw", "--container-format", "bare"]
        await self._glance(HOME, "image-create", *names, "--file", str(self._base_file))
        made = await self.home.document(f"/v2/images/{self.base_uuid}")
        self.history.ok(create, number=made["os_glance_v1_id"])
        self.history.ok(upload)
        self._say(f"It has the image number [bold]{made['os_glance_v1_id']}[/]. {AWAY} sees it and downloads it.")
        await self._until(f"{AWAY} to list the base image", self._away_lists_base)
        await self._glance(AWAY, "image-show", self.base_uuid)
        copy = self.cluster.base / "base.copy"
        await self._glance(AWAY, "image-download", self.base_uuid, "--file", str(copy))
        self._check(hashlib.sha512(copy.read_bytes()).hexdigest() == sha512, f"{AWAY} downloaded other bytes")

    async def _away_lists_base(self) -> bool:
        return any(image["id"] == self.base_uuid and image["status"] == "active" for image in await self.away.images())

    async def _backups(self) -> None:
        self._say(f"[bold]A backup job[/] in {AWAY}: {self.job.count} instance snapshots with data, several at once.")
        bar = self._progress.add_task(f"backups in {AWAY}", total=self.job.count)
        self.job.on_done = lambda done: self._progress.update(bar, completed=done)
        async with self._degraded_watched():
            async with _running(self.job.run()):
                await self._leader_dies()
                await self._registry_goes_away()
                await self._zone_is_cut_off()
            await self._heal_and_drain()

    async def _leader_dies(self) -> None:
        """At a third the leader is killed; at half it is back. The job goes on."""
        await self.job.allow(self.job.count // 2)
        async with Probe(client_of(self.cluster), self.history) as probe:
            await self.job.reached(self.job.count // 3, STEP_TIMEOUT_S)
            leader = await asyncio.to_thread(self.cluster.wait_leader, STEP_TIMEOUT_S)
            self._say(f"One third: the registry's [bold red]leader, peer {leader}, is killed[/] (SIGKILL).")
            await asyncio.to_thread(self.cluster.kill, leader)
            killed = time.monotonic()
            successor = await asyncio.to_thread(self.cluster.wait_leader, STEP_TIMEOUT_S)
            await probe.answered_since(killed, STEP_TIMEOUT_S)
            self.numbers.failover_s = probe.longest_gap_s
            self._say(f"Peer {successor} leads; nobody got a number for {probe.longest_gap_s:.2f} s.")
            await self.job.reached(self.job.count // 2, STEP_TIMEOUT_S)
        await asyncio.to_thread(self.cluster.start_process, leader)
        await asyncio.to_thread(self.cluster.wait_ready, [leader], STEP_TIMEOUT_S)

    async def _registry_goes_away(self) -> None:
        """From half to two thirds there is no registry."""
        self._say("Half: [bold red]the whole registry is stopped[/]. Backups go on.")
        began = time.monotonic()
        await asyncio.gather(*(asyncio.to_thread(self.cluster.stop_process, peer) for peer in self.cluster.peers))
        await self._until(f"{AWAY} to notice", lambda: self._is_state(self.away, "degraded"))
        await self.job.allow(2 * self.job.count // 3)
        await self.job.reached(2 * self.job.count // 3, STEP_TIMEOUT_S)
        self._say(f"{await self._pending()} writes wait in {AWAY}'s queue. The registry is started again.")
        for peer in self.cluster.peers:
            await asyncio.to_thread(self.cluster.start_process, peer)
        await asyncio.to_thread(self.cluster.wait_ready, self.cluster.peers, STEP_TIMEOUT_S)
        self.numbers.registry_away_s = time.monotonic() - began

    async def _zone_is_cut_off(self) -> None:
        """From two thirds on the zone has no link to anywhere."""
        self._say(f"Two thirds: [bold red]all links of {AWAY} are cut[/], to the registry and to {HOME}.")
        await asyncio.to_thread(self.cluster.cut_zone, AWAY)
        await self._until(f"{AWAY} to notice", lambda: self._is_state(self.away, "degraded"))
        await self.job.allow(self.job.count)
        await self.job.reached(self.job.count, STEP_TIMEOUT_S)
        status = await self.away.status()
        block = status["block"] or {}
        self._say(
            f"All {self.job.count} backups are made; the last have IDs from the block on hand "
            f"({block.get('first')} to {block.get('last')}, next {block.get('next')})."
        )
        await self._works_while_cut_off()

    async def _works_while_cut_off(self) -> None:
        """The base image and every backup show, and a sample downloads with the right bytes."""
        listed = {image["id"] for image in await self.away.images()}
        missing = [one for one in (self.base_uuid, *self.job.uuids) if one not in listed]
        self._check(not missing, f"{AWAY} does not list {len(missing)} images while it is cut off: {missing[:3]}")
        sample = random.Random(self.seed).sample(self.job.uuids, min(DOWNLOADS, len(self.job.uuids)))
        for one in (self.base_uuid, *sample):
            await self._download(self.away, one)
        self._say(f"Still cut off, {AWAY} lists the base image and all backups; {len(sample) + 1} of them downloaded.")

    async def _heal_and_drain(self) -> None:
        self._say(f"[bold green]The links are healed.[/] {await self._pending()} writes drain into the registry.")
        began = time.monotonic()
        pending = await self._pending()
        bar = self._progress.add_task("draining", total=pending)

        async def drained() -> bool:
            left = await self._pending()
            self._progress.update(bar, completed=max(0, pending - left))
            return left == 0

        await asyncio.to_thread(self.cluster.heal_zone, AWAY)
        await self._until(f"{AWAY}'s queue to drain", drained)
        self.numbers.drain_s = time.monotonic() - began

    async def _see_all_at_home(self) -> None:
        """The other zone lists every backup, and downloads one."""
        began = time.monotonic()

        async def all_listed() -> bool:
            return {image["id"] for image in await self.home.images()} >= set(self.job.uuids)

        await self._until(f"{HOME} to list every backup", all_listed)
        self.numbers.feed_lag_s = time.monotonic() - began
        one = random.Random(self.seed).choice(self.job.uuids)
        await self._until(f"{HOME} to know where {AWAY}'s data are", lambda: self._downloads(self.home, one))
        self._say(f"{HOME} lists every backup; it downloaded one from {AWAY}, and its sha512 is right.")

    async def _judge(self) -> Verdict:
        """What clients were told, against what the registry and both zones hold."""
        async with client_of(self.cluster, STEP_TIMEOUT_S) as registry:
            images = await registry_images(registry)
        zones = {HOME: await self.home.images(), AWAY: await self.away.images()}
        self.history.close()
        return judge(history.read(self.history.path), images, zones)

    # What steps are made of.

    async def _glance(self, zone: str, *arguments: str) -> None:
        """Run the OpenStack client's glance command against a zone."""
        program = setup.CLIENTS.command("glance")
        if not program.exists():
            raise StoryError(f"There is no {program}. Start the story with `make run`, which installs it.")
        place = self.cluster.zones[zone]
        options = ["--os-image-api-version", "2", "--os-image-url", place.url, f"--os-auth-token={place.token}"]
        done = await asyncio.to_thread(
            subprocess.run,
            [str(program), *options, *arguments],
            env=environment.clean(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=GLANCE_TIMEOUT_S,
            check=False,
        )
        said = done.stdout.decode("utf-8", "replace").strip()
        self._check(done.returncode == 0, f"`glance {arguments[0]}` in {zone} failed ({done.returncode}):\n{said}")

    async def _download(self, api: ImagesApi, one: str) -> None:
        """Download and note what came; the judge compares it with what was uploaded."""
        operation = self.history.invoke("reader", "download", uuid=one)
        sha512, size = await api.download(one)
        self.history.ok(operation, sha512=sha512, size=size)

    async def _downloads(self, api: ImagesApi, one: str) -> bool:
        try:
            await self._download(api, one)
        except BackupError:
            return False
        return True

    async def _pending(self) -> int:
        return int((await self.away.status())["queue_depth"])

    async def _is_state(self, api: ImagesApi, state: str) -> bool:
        return bool((await api.status())["state"] == state)

    async def _until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Look until it is so. Raises StoryError after STEP_TIMEOUT_S."""
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                # Looked at from outside, as people do: the gateway tells nobody when its state changes.
                while not await condition():  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise StoryError(f"Waited {STEP_TIMEOUT_S:.0f} s for {what}, in vain.") from None

    @staticmethod
    def _check(holds: bool, otherwise: str) -> None:
        if not holds:
            raise StoryError(otherwise)

    @contextlib.asynccontextmanager
    async def _degraded_watched(self) -> AsyncIterator[None]:
        """Add up the time in which the zone says that it is degraded."""

        async def watch() -> None:
            last = time.monotonic()
            while True:
                degraded = await self._is_state(self.away, "degraded")
                now = time.monotonic()
                self.numbers.degraded_s += degraded * (now - last)
                last = now
                await asyncio.sleep(LOOK_EVERY_S)

        async with _cancelled_after(watch()):
            yield


@contextlib.asynccontextmanager
async def _cancelled_after(work: Awaitable[None]) -> AsyncIterator[None]:
    """Do `work` while the block runs; what it raises meanwhile ends the block's owner."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_as_coroutine(work))
        try:
            yield
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def _running(work: Awaitable[None]) -> AsyncIterator[None]:
    """Do `work` beside the block, and wait for it at the end."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_as_coroutine(work))
        yield


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work


def table_of(verdict: Verdict, numbers: Numbers, longest_pause_s: float) -> Table:
    """The closing table."""
    table = Table(title="What the job was told, and what is there", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    good = "green" if verdict.ok else "bold red"
    doubled = verdict.duplicate_numbers + verdict.duplicate_uuids
    rows = {
        "images acknowledged": str(verdict.acknowledged),
        "in the registry": str(verdict.in_registry),
        "lost": f"[{good}]{verdict.lost}",
        "duplicate IDs": f"[{good}]{doubled}",
        "other breaches": f"[{good}]{verdict.breaches - verdict.lost - doubled}",
        "checksums verified": str(verdict.checksums_verified),
        "longest pause of a backup client": f"{longest_pause_s:.2f} s",
        "failover after the leader's death": f"{numbers.failover_s:.2f} s",
        "registry away": f"{numbers.registry_away_s:.1f} s",
        f"{AWAY} degraded": f"{numbers.degraded_s:.1f} s",
        "time to drain": f"{numbers.drain_s:.2f} s",
        f"feed lag, registry to {HOME}": f"{numbers.feed_lag_s:.2f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


async def run(base: Path, console: Console, once: bool) -> int:
    """Start the cluster, tell the story, show the table, and serve until Ctrl-C unless `once`."""
    cluster = Cluster(base, proxied=True)
    began = time.monotonic()
    if task := asyncio.current_task():
        # A Ctrl-C is asyncio's to handle; a SIGTERM ends the story in the same orderly way.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        console.print("Starting three registry peers, two zones, and a proxy on every link ...")
        await asyncio.to_thread(cluster.start)
        story = Story(cluster, console)
        verdict = await story.tell()
        console.print(table_of(verdict, story.numbers, story.job.longest_pause_s))
        for problem in verdict.problems:
            console.print(f"[bold red]{problem}[/]", highlight=False)
        console.print(f"Told in {time.monotonic() - began:.0f} s. History: {story.history.path}", highlight=False)
        if not once:
            await _serve(cluster, console)
        return 0 if verdict.ok else 1
    finally:
        await asyncio.to_thread(cluster.stop)


async def _serve(cluster: Cluster, console: Console) -> None:
    """Show where everything is, and wait for Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console.print(show(read_state(cluster.state_file) or {}), highlight=False, soft_wrap=True)
    console.print("Everything keeps running; [bold]Ctrl-C[/] ends it.")
    await stop.wait()


def _explained(error: BaseException) -> list[str]:
    """What went wrong, without the wrapping of task groups."""
    if isinstance(error, BaseExceptionGroup):
        return [line for inner in error.exceptions for line in _explained(inner)]
    known = (StoryError, BackupError, ClusterError, ProcessError, LinkError)
    return [str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}"]


def main(arguments: Sequence[str]) -> int:
    """Tell the story in .run/story; 0 if nothing was lost or doubled."""
    if arguments:
        print("usage: [ONCE=1] python -m ops.dev.story", file=sys.stderr)
        return 2
    forget_caller()
    console = Console()
    once = os.environ.get("ONCE", "0") not in ("", "0") or not (sys.stdin.isatty() and console.is_terminal)
    base = RUN_DIR / "story"
    try:
        with alone(RUN_DIR / "story.lock"):
            stop_left(base / "cluster.json")
            shutil.rmtree(base, ignore_errors=True)
            return asyncio.run(run(base, console, once))
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except Exception as error:
        for line in _explained(error):
            console.print(f"[bold red]The story ends here:[/] {line}", highlight=False)
        console.print(f"Logs of all processes: {base / 'logs'}", highlight=False, soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
