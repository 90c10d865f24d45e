"""Who may import what, directly. The rules are import-linter contracts, made here for the modules that exist.

    python -m ops.dev.imports        lints this checkout, exit status 1 when a rule is broken

Patterns are names of modules, with * for any characters. Why generated: import-linter refuses a contract that names a
module which isn't there, and can't say "all of raftreg except these".
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from importlinter import cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("raftreg", "zonegw", "chaos", "ops")


@dataclass(frozen=True)
class Rule:
    """Modules that match `modules` (less `except_for`) never import what matches `never` (less `but_may`)."""

    name: str
    modules: Sequence[str]
    never: Sequence[str]
    except_for: Sequence[str] = ()
    but_may: Sequence[str] = ()


@dataclass(frozen=True)
class Contract:
    """A rule with its patterns resolved to names of modules and of packages outside."""

    name: str
    sources: list[str]
    forbidden: list[str] = field(default_factory=list)


CLOCKS_AND_SUCH = ("asyncio", "aiohttp", "time", "random", "uuid", "os")
BELOW_THE_API = ("raftreg.raft", "raftreg.state_*", "lmdb", "pysyncobj")
STATE = ("raftreg.state_*", "raftreg.commands")
UPLINK_MAY = ("raftreg.client", "raftreg.wire", "raftreg.errors")
# Only raftreg.engine and the modules beside it know which Raft library is used.
CONSENSUS = ("raftreg.raft", "raftreg.engine", "raftreg.journal", "raftreg.transport", "raftreg.snapshots")
JUDGE = (
    "chaos.checker", "chaos.models", "chaos.history", "chaos.validate", "chaos.validators.*", "chaos.lives",
    "chaos.verdict", "chaos.judge", "chaos.report*",
)  # fmt: skip

RULES = (
    Rule("apply sees no clock, randomness, loop or HTTP", STATE, CLOCKS_AND_SUCH),
    Rule("apply knows nothing of consensus and API", STATE, ("raftreg.raft", "raftreg.proposer", "raftreg.api*")),
    Rule("tables stand alone", ("raftreg.tables",), ("raftreg.*", "zonegw.*", "chaos.*", "ops.*")),
    Rule(
        "consensus gets apply handed in",
        ("raftreg.raft", "raftreg.journal", "raftreg.transport"),
        ("raftreg.api*", "raftreg.proposer", "raftreg.state_*"),
    ),
    Rule("the API sees neither Raft nor LMDB", ("raftreg.api*",), BELOW_THE_API),
    Rule("one door to the Raft library", ("*",), ("pysyncobj",), except_for=CONSENSUS),
    Rule("a gateway's uplink sees only the registry's client", ("zonegw.uplink",), ("raftreg.*",), but_may=UPLINK_MAY),
    Rule("one door to the registry", ("zonegw.*",), ("raftreg.*", "raftreg"), except_for=("zonegw.uplink",)),
    Rule(
        "the Images API only translates",
        ("zonegw.images_v1*", "zonegw.images_v2*", "zonegw.discovery"),
        ("lmdb", "zonegw.uplink", "zonegw.write_queue"),
    ),
    Rule("the registry knows no gateway", ("raftreg.*",), ("zonegw.*", "zonegw")),
    Rule("what is installed needs no tools of ours", ("raftreg.*", "zonegw.*"), ("chaos.*", "chaos", "ops.*", "ops")),
    Rule(
        "the judge can't see what it judges",
        JUDGE,
        (
            "chaos.faults*", "chaos.links", "chaos.workloads*", "ops.*", "raftreg.*", "raftreg", "zonegw.*", "zonegw",
            "aiohttp",
        ),
    ),
)  # fmt: skip


def contracts(rules: Iterable[Rule], modules: Sequence[str]) -> list[Contract]:
    """The contract of each rule of which at least one module exists, for the `modules` that exist."""
    made = []
    for rule in rules:
        sources = sorted(set(_matching(rule.modules, modules)) - set(_matching(rule.except_for, modules)))
        inside = set(_matching(rule.never, modules)) - set(_matching(rule.but_may, modules)) - set(sources)
        outside = {name for name in rule.never if not _is_ours(name)}
        if sources and (inside or outside):
            made.append(Contract(rule.name, sources, sorted(inside | outside)))
    return made


def unmatched(rules: Iterable[Rule], modules: Sequence[str]) -> list[str]:
    """Patterns for modules of ours that match nothing: not written yet, or a typing mistake in a rule."""
    patterns = {p for rule in rules for p in (*rule.modules, *rule.never, *rule.except_for, *rule.but_may)}
    return sorted(p for p in patterns if _is_ours(p) and not _matching((p,), modules))


def modules_below(root: Path, packages: Iterable[str] = PACKAGES) -> list[str]:
    """Dotted names of all modules of `packages` below `root`; a package counts as the module of its __init__.py."""
    found = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def lint(root: Path, rules: Iterable[Rule], configuration: Path) -> int:
    """Check the rules for the packages below `root` (its first entry in sys.path); 0 when all are kept.

    A package without __init__.py counts as a broken rule, since import-linter would not see it. `configuration` is the
    file to write import-linter's configuration to.
    """
    packages = [name for name in PACKAGES if (root / name).is_dir()]
    if bare := [name for name in packages if not (root / name / "__init__.py").is_file()]:
        print(f"No __init__.py, so that its imports can't be checked: {', '.join(bare)}")
        return 1
    modules = modules_below(root, packages)
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(_toml(packages, contracts(rules, modules)), encoding="utf-8")
    return cli.lint_imports(config_filename=str(configuration), no_cache=True, no_logo=True)


def _toml(packages: Iterable[str], made: Iterable[Contract]) -> str:
    """import-linter's configuration. JSON strings and lists are valid TOML."""
    lines = ["[tool.importlinter]", f"root_packages = {json.dumps(list(packages))}", "include_external_packages = true"]
    for contract in made:
        lines += [
            "[[tool.importlinter.contracts]]",
            f"name = {json.dumps(contract.name)}",
            'type = "forbidden"',
            f"source_modules = {json.dumps(contract.sources)}",
            f"forbidden_modules = {json.dumps(contract.forbidden)}",
            "allow_indirect_imports = true",
            "as_packages = false",
            'unmatched_ignore_imports_alerting = "error"',
        ]
    return "\n".join(lines) + "\n"


def _matching(patterns: Iterable[str], modules: Sequence[str]) -> list[str]:
    return [module for pattern in patterns for module in fnmatch.filter(modules, pattern)]


def _is_ours(pattern: str) -> bool:
    return pattern == "*" or pattern.split(".")[0] in PACKAGES


def main() -> int:
    """Lint this checkout and name the patterns that match nothing yet."""
    if missing := unmatched(RULES, modules_below(ROOT)):
        print("Rules name modules that don't exist (yet):", ", ".join(missing))
    return lint(ROOT, RULES, ROOT / ".run" / "check" / "import-rules.toml")


if __name__ == "__main__":
    sys.exit(main())
