"""The import rules: each is broken on purpose in a checkout made for the test, and must be reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ops.dev import imports

ROOT = Path(imports.__file__).resolve().parents[2]

KEPT = {
    "raftreg/__init__.py": "",
    "raftreg/raft.py": "import pysyncobj\nimport time\n",
    "raftreg/client.py": "import asyncio\n",
    "raftreg/wire.py": "",
    "raftreg/errors.py": "",
    "raftreg/tables.py": "import lmdb\n",
    "raftreg/proposer.py": "from raftreg import raft\n",
    "raftreg/commands.py": "import msgpack\n",
    "raftreg/state_machine.py": "from raftreg import commands, tables\n",
    "raftreg/api.py": "from raftreg import proposer, wire\n",
    "raftreg/transport.py": "import asyncio\n",
    "zonegw/__init__.py": "",
    "zonegw/write_queue.py": "import lmdb\n",
    "zonegw/uplink.py": "from raftreg import client, errors, wire\n",
    "zonegw/images.py": "from zonegw import uplink, write_queue\n",
    "zonegw/images_v2.py": "from zonegw import images\n",
    "chaos/__init__.py": "",
    "chaos/links.py": "from raftreg import client\n",
    "chaos/history.py": "import json\n",
    "chaos/validate.py": "from chaos import history\n",
    "ops/__init__.py": "from chaos import links, validate\n",
}

BROKEN = [
    ("raftreg/state_machine.py", "import time"),
    ("raftreg/state_machine.py", "def apply():\n    from random import random"),
    ("raftreg/commands.py", "import os.path"),
    ("raftreg/commands.py", "from raftreg.api import app"),
    ("raftreg/tables.py", "from . import wire"),
    ("raftreg/transport.py", "import raftreg.state_machine"),
    ("raftreg/raft.py", "from raftreg import proposer"),
    ("raftreg/api.py", "from raftreg.raft import RaftNode"),
    ("raftreg/api.py", "import lmdb"),
    ("raftreg/client.py", "import pysyncobj.node"),
    ("ops/__init__.py", "import pysyncobj"),
    ("raftreg/client.py", "import zonegw.images"),
    ("raftreg/client.py", "import chaos"),
    ("zonegw/images.py", "from raftreg import client"),
    ("zonegw/images.py", "import raftreg"),
    ("zonegw/uplink.py", "from raftreg import tables"),
    ("zonegw/images_v2.py", "from zonegw.write_queue import WriteQueue"),
    ("zonegw/images_v2.py", "import lmdb"),
    ("chaos/validate.py", "from chaos import links"),
    ("chaos/history.py", "import aiohttp.web"),
    ("chaos/validate.py", "from raftreg import client"),
]


def test_modules_that_keep_every_rule_pass(tmp_path: Path) -> None:
    status, said = _lint(tmp_path, {})
    assert status == 0, said
    assert f"{len(imports.RULES)} kept, 0 broken" in said


@pytest.mark.parametrize(
    ("path", "code"), BROKEN, ids=[f"{path}: {code.split(chr(10))[-1].strip()}" for path, code in BROKEN]
)
def test_an_import_that_breaks_a_rule_is_found(tmp_path: Path, path: str, code: str) -> None:
    status, said = _lint(tmp_path, {path: KEPT[path] + code + "\n"})
    assert status == 1, said
    assert path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") + " is not allowed to import" in said


def test_a_package_whose_imports_cannot_be_seen_is_found(tmp_path: Path) -> None:
    _write(tmp_path, KEPT)
    (tmp_path / "chaos" / "__init__.py").unlink()
    status, said = _run(tmp_path)
    assert (status, "No __init__.py" in said, "chaos" in said) == (1, True, True)


def test_rules_hold_while_most_modules_are_not_written_yet(tmp_path: Path) -> None:
    _write(
        tmp_path, {"raftreg/__init__.py": "", "raftreg/tables.py": "from raftreg import wire\n", "raftreg/wire.py": ""}
    )
    status, said = _run(tmp_path)
    assert status == 1
    assert "raftreg.tables is not allowed to import raftreg.wire" in said


def test_every_rule_applies_to_the_modules_of_its_test() -> None:
    modules = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in KEPT]
    assert [contract.name for contract in imports.contracts(imports.RULES, modules)] == [r.name for r in imports.RULES]


def _lint(root: Path, changed: dict[str, str]) -> tuple[int, str]:
    _write(root, KEPT | changed)
    return _run(root)


def _write(root: Path, files: dict[str, str]) -> None:
    for path, code in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(code, encoding="utf-8")


def _run(root: Path) -> tuple[int, str]:
    """Lint the packages below `root` in a process of its own, which imports ours for the linter only."""
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('rules', {str(ROOT / 'ops/dev/imports.py')!r})\n"
        "rules = sys.modules['rules'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(rules)\n"
        f"root = pathlib.Path({str(root)!r})\n"
        "sys.path.insert(0, str(root))\n"
        "sys.exit(rules.lint(root, rules.RULES, root / 'rules.toml'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr
