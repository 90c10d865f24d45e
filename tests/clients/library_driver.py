"""Calls the OpenStack client libraries for a test that runs in another environment.

Standard input: one JSON object a line, {"library", "options", "call": "images.get", "arguments", "keywords"}; a file to
be read is {"$file": path}, the result of another call {"$call", "arguments"}. Standard output: one for each, {"result"}
or {"error", "message", "http_status"}; bytes are {"$bytes": base64}. There is one client for each library and options.
"""

import base64
import functools
import importlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any


def main() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    # What a library prints must not get between the answers.
    os.dup2(2, 1)
    for line in requests:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    target = client(request["library"], json.dumps(request["options"]))
    try:
        return {"result": plain(call(target, request["call"], request["arguments"], request["keywords"]))}
    except Exception as error:
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        return {"error": type(error).__name__, "message": str(error), "http_status": status}


@functools.cache
def client(library: str, options: str) -> Any:
    """glanceclient as Nova and Cinder make it, or a connection of openstacksdk."""
    chosen = json.loads(options)
    if library == "glanceclient":
        module = importlib.import_module("glanceclient")
        return module.Client(chosen["version"], chosen["endpoint"], token=chosen["token"])
    return importlib.import_module("openstack").connection.Connection(**chosen)


def call(target: Any, path: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """What target.path(*arguments, **keywords) returns."""
    given = [meant(target, value) for value in arguments]
    named = {name: meant(target, value) for name, value in keywords.items()}
    return functools.reduce(getattr, path.split("."), target)(*given, **named)


def meant(target: Any, value: Any) -> Any:
    if isinstance(value, dict) and "$file" in value:
        return open(value["$file"], "rb")
    if isinstance(value, dict) and "$call" in value:
        return call(target, value["$call"], value["arguments"], {})
    return value


def plain(value: Any) -> Any:
    """A result as JSON: resources as dictionaries, iterators as lists, pieces of data as one."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "iter_content"):
        return plain(value.content)
    if isinstance(value, Iterable):
        items = list(value)
        return plain(b"".join(items)) if items and isinstance(items[0], bytes) else [plain(item) for item in items]
    return str(value)


if __name__ == "__main__":
    main()
