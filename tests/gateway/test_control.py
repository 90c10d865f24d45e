"""The operator socket: who may open it, what it answers, and that it can be had again after a kill."""

from __future__ import annotations

import argparse
import asyncio
import stat
from pathlib import Path

import pytest
from aiohttp import web

from tests.gateway.running import running
from zonegw import control
from zonegw.cli_control import ask
from zonegw.errors import Conflict
from zonegw.limits import Limits


class Greeting:
    """A noun with an answer, a refusal and a bug."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/greeting", self.greet)
        router.add_get("/refused", self.refused)
        router.add_get("/broken", self.broken)

    async def greet(self, request: web.Request) -> web.Response:
        return control.answer({"greeted": await control.asked(request), "key": b"\x01\xff"})

    async def refused(self, request: web.Request) -> web.Response:
        raise Conflict("the image is busy: wait for it")

    async def broken(self, request: web.Request) -> web.Response:
        raise ZeroDivisionError


async def said(directory: Path, method: str, path: str, **body: object) -> object:
    """What a command gets, from a gateway whose data lie in `directory`."""
    settings = directory / "zonegw.toml"
    settings.write_text(
        'zone = "fra"\ngateway = "fra-1"\ndata_dir = "."\n[images]\nlisten = "127.0.0.1:0"\n'
        '[registry]\nendpoints = ["http://127.0.0.1:1"]\n[auth]\nmethods = ["none"]\n'
    )
    return await asyncio.to_thread(ask, argparse.Namespace(config=settings), method, path, **body)


@pytest.fixture(params=["short", "l" * 120], ids=["short path", "long path"])
async def directory(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    directory = tmp_path / request.param
    directory.mkdir()
    runner = web.AppRunner(control.build_app([Greeting()], Limits()))
    await runner.setup()
    await web.SockSite(runner, control.listening(directory)).start()
    yield directory
    await runner.cleanup()


async def test_a_command_gets_its_answer_however_long_the_path_is(directory: Path) -> None:
    assert await said(directory, "POST", "/greeting", name="eve") == {"greeted": {"name": "eve"}, "key": "01ff"}


async def test_a_refusal_reaches_the_operator_as_the_sentence_that_it_is(directory: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^the image is busy: wait for it$"):
        await said(directory, "GET", "/refused")
    with pytest.raises(RuntimeError, match="its log has the reason"):
        await said(directory, "GET", "/broken")
    with pytest.raises(RuntimeError, match="may be of another release"):
        await said(directory, "GET", "/unheard-of")


async def test_nobody_but_the_owner_may_open_it(directory: Path) -> None:
    mode = (directory / control.SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_a_gateway_that_does_not_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="needs the running gateway"):
        await said(tmp_path, "GET", "/greeting")


async def test_what_a_killed_gateway_left_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        directory = zone.gateway.config.data_dir
    left = control.listening(directory)
    async with running(tmp_path):
        with pytest.raises(RuntimeError, match="knows no GET /nothing"):
            await said(directory, "GET", "/nothing")
    left.close()
