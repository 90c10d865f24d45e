"""Runs command lines of the OpenStack clients, each in a fork of this process, which has imported them: that takes
longer than a hundred requests. Executed by the Python of the clients' environment.

Standard input: one JSON object a line, {"program", "arguments", "environment", "stdin": path or null}. Standard output:
one for each, {"status", "stdout", "stderr"}, with what the program printed and ended with.
"""

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import IO, Any, NoReturn

# The modules whose `main` the console commands call.
PROGRAMS = {"glance": "glanceclient.shell", "openstack": "openstackclient.shell"}
# What they import and find out only when a command needs it, without asking any server.
USED_LATER = (
    "glanceclient.v1.shell",
    "glanceclient.v2.shell",
    "openstack.connection",
    "openstackclient.image.v2.image",
)
WARMING_UP = ("help", "image", "list")


def main() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for module in (*PROGRAMS.values(), *USED_LATER):
        importlib.import_module(module)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        importlib.import_module(PROGRAMS["openstack"]).main(list(WARMING_UP))
    _, terminal = os.openpty()
    for line in requests:
        request = json.loads(line)
        with contextlib.ExitStack() as stack:
            given = stack.enter_context(open(request["stdin"])).fileno() if request["stdin"] else terminal
            outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            answer = run(request, given, outputs)
        print(json.dumps(answer), file=answers, flush=True)


def run(request: dict[str, Any], given: int, outputs: Sequence[IO[bytes]]) -> dict[str, Any]:
    """One command in a process of its own, with a terminal or a file as input, and files for what it prints."""
    pid = os.fork()
    if pid == 0:
        for number, descriptor in enumerate((given, *(output.fileno() for output in outputs))):
            os.dup2(descriptor, number)
        os.environ.update(request["environment"])
        become(request["program"], request["arguments"])
    _, ended = os.waitpid(pid, 0)
    for output in outputs:
        output.seek(0)
    stdout, stderr = (output.read().decode("utf-8", "backslashreplace") for output in outputs)
    return {"status": os.waitstatus_to_exitcode(ended), "stdout": stdout, "stderr": stderr}


def become(program: str, arguments: list[str]) -> NoReturn:
    """Do what the console command does, and end."""
    sys.argv = [program, *arguments]
    status = 1
    try:
        status = int(importlib.import_module(PROGRAMS[program]).main() or 0)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
