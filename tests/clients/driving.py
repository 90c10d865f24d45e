"""The unmodified OpenStack clients for tests: their command lines and libraries, in processes of their own environment.

shell = Shell(home)
shell.run("glance", "image-list").rows        # a table, as a list of dictionaries
library = Libraries(home).glanceclient(url, token)
library.images.create(name="cirros")          # any call of the library; raises Refused
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.dev import environment, setup

HERE = Path(__file__).parent
# Longer than any deadline of the gateway and the start of a client together.
ANSWER_MAX_S = 60
END_MAX_S = 10


class Driver:
    """A process of the clients' environment that answers each JSON line with one."""

    def __init__(self, program: str, home: Path) -> None:
        # A home of its own, where clients keep caches; and so wide that no table is folded.
        env = environment.clean(os.environ) | {"HOME": str(home), "COLUMNS": "2000"}
        self._log = (home / f"{program}.log").open("ab")
        self._process = subprocess.Popen(
            [str(setup.CLIENTS.python), "-I", str(HERE / program)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The driver's answer. A client that hangs is ended and named."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_MAX_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            raise AssertionError(f"no answer within {ANSWER_MAX_S} s to {request}; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait(END_MAX_S)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()


@dataclass(frozen=True)
class Done:
    """What a command line program printed, and its exit status."""

    command: str
    status: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, str]]:
        """The table that was printed; cells that go on in more lines are joined."""
        cells = [_cells(line) for line in self.stdout.splitlines() if line.startswith("|")]
        assert cells, f"{self.command} printed no table: {self.stdout}"
        return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]

    @property
    def properties(self) -> dict[str, str]:
        """The table of properties and values that was printed."""
        found: dict[str, str] = {}
        name = ""
        for row in self.rows:
            name = row["Property"] or name
            found[name] = found.get(name, "") + row["Value"]
        return found

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


class Shell:
    """The command line programs `glance` and `openstack`."""

    def __init__(self, home: Path) -> None:
        self._driver = Driver("shell_driver.py", home)

    def any(
        self, program: str, *arguments: str, environment: Mapping[str, str] | None = None, stdin: Path | None = None
    ) -> Done:
        """Run a command, whatever comes of it."""
        answer = self._driver.ask(
            {
                "program": program, "arguments": arguments, "environment": dict(environment or {}),
                "stdin": str(stdin) if stdin else None,
            }
        )  # fmt: skip
        return Done(f"{program} {' '.join(arguments)}", **answer)

    def close(self) -> None:
        self._driver.close()


@dataclass(frozen=True)
class Commands:
    """One program with the options that say where and who."""

    shell: Shell
    program: str
    options: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: Path | None = None) -> Done:
        """Run a command that must succeed."""
        done = self._run(arguments, stdin)
        assert done.status == 0, f"{done.command} ended with {done.status}:\n{done.stdout}{done.stderr}"
        return done

    def refused(self, *arguments: str, stdin: Path | None = None) -> str:
        """Run a command that must fail, and return what it told the user."""
        done = self._run(arguments, stdin)
        assert done.status != 0, f"{done.command} succeeded:\n{done.stdout}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def _run(self, arguments: tuple[str, ...], stdin: Path | None) -> Done:
        options = (*self.options, *arguments)
        return self.shell.any(self.program, *options, environment=self.environment, stdin=stdin)


class Refused(Exception):
    """A library raised: `kind` is its exception's name, `status` the HTTP status that it knows."""

    def __init__(self, call: str, answer: dict[str, Any]) -> None:
        super().__init__(f"{call}: {answer['error']}: {answer['message']}")
        self.kind, self.message, self.status = answer["error"], answer["message"], answer["http_status"]


@dataclass(frozen=True)
class Library:
    """A client object in the other process; attributes and calls go there."""

    driver: Driver
    library: str
    options: dict[str, Any]
    path: str = ""

    def __getattr__(self, name: str) -> Library:
        path = f"{self.path}.{name}" if self.path else name
        return Library(self.driver, self.library, self.options, path)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        answer = self.driver.ask(
            {
                "library": self.library, "options": self.options, "call": self.path,
                "arguments": [_sent(value) for value in arguments],
                "keywords": {name: _sent(value) for name, value in keywords.items()},
            }
        )  # fmt: skip
        if "error" in answer:
            raise Refused(self.path, answer)
        return _decoded(answer["result"])

    def result(self, *arguments: Any) -> dict[str, Any]:
        """Stands for the object that this call returns, as an argument of another call."""
        return {"$call": self.path, "arguments": [_sent(value) for value in arguments]}


def _sent(value: Any) -> Any:
    """A path stands for the open file."""
    return {"$file": str(value)} if isinstance(value, Path) else value


def _decoded(value: Any) -> Any:
    return base64.b64decode(value["$bytes"]) if isinstance(value, dict) and "$bytes" in value else value


class Libraries:
    """The client libraries, as the services of a cloud use them."""

    def __init__(self, home: Path) -> None:
        self._driver = Driver("library_driver.py", home)

    def glanceclient(self, endpoint: str, token: str, version: str = "2") -> Library:
        return Library(self._driver, "glanceclient", {"version": version, "endpoint": endpoint, "token": token})

    def sdk(self, endpoint: str, token: str, version: str = "2") -> Library:
        """A connection of openstacksdk to an endpoint, whose version it takes from the URL."""
        auth = {"endpoint": f"{endpoint}/v{version}", "token": token}
        options = {"auth_type": "admin_token", "auth": auth, "image_api_version": version}
        return Library(self._driver, "openstacksdk", options)

    def close(self) -> None:
        self._driver.close()
