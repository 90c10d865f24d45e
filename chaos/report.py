"""The report of a run: one HTML page that needs nothing else, and a table for the terminal.

The verdict comes first; then what was broken with the operations around it, the faults with their pauses, the charts,
and what is needed to repeat the run. The page is well-formed XML too, so that programs can read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template
from typing import Any

from rich.table import Table
from rich.text import Text

from chaos import config, report_charts, report_figures
from chaos.history import Operation
from chaos.report_figures import FaultFigures
from chaos.verdict import FAIL, PASS, UNKNOWN, Breach, Check, overall

VERDICTS = {
    PASS: "No promise was broken",
    FAIL: "Promises were broken",
    UNKNOWN: "Not decided: a check gave up, which is no pass",
}
NOTHING_SAID = "Nothing was checked"


@dataclass(frozen=True)
class Facts:
    """What a reader needs to repeat the run. `details`: name -> value, such as versions, shown as they are."""

    seed: int
    command: str
    commit: str
    began: str
    details: dict[str, str] = field(default_factory=dict)


def sentence(checks: Sequence[Check]) -> str:
    """The verdict in one line."""
    return f"{VERDICTS.get(overall(checks), NOTHING_SAID)}."


def table(checks: Sequence[Check]) -> Table:
    """The verdict for the terminal."""
    shown = Table(title=sentence(checks), title_justify="left")
    for column in ("", "promise", "check", "verified", "broken"):
        shown.add_column(column, justify="right" if column in ("verified", "broken") else "left")
    colours = {PASS: "green", FAIL: "bold red", UNKNOWN: "yellow"}
    for check in checks:
        result = Text(check.result, style=colours.get(check.result, "dim"))
        shown.add_row(result, check.promise, check.name, str(check.verified), str(check.breaches))
    return shown


def page(checks: Sequence[Check], operations: Sequence[Operation], facts: Facts) -> str:
    """The report as HTML."""
    by_number = {operation.number: operation for operation in operations}
    faults = report_figures.faults(operations)
    return _PAGE.substitute(
        title=escape(f"Chaos run, seed {facts.seed}: {sentence(checks)}"),
        verdict=escape(sentence(checks)),
        result=_css(overall(checks)),
        checks=_checks(checks),
        broken="".join(_broken(check, by_number) for check in checks),
        faults=_faults(faults),
        charts=_charts(operations, faults),
        totals=_totals(operations),
        facts=_facts(facts),
        command=escape(facts.command),
    )


def _css(result: str) -> str:
    return {PASS: "pass", FAIL: "broken", UNKNOWN: "undecided"}.get(result, "nothing")


def _rows(rows: Iterable[Sequence[str]]) -> str:
    """Table rows of HTML cells."""
    return "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{_rows(rows)}</tbody></table></div>'


def _checks(checks: Sequence[Check]) -> str:
    rows = (
        (
            f'<span class="{_css(check.result)}">{escape(check.result)}</span>',
            escape(check.promise),
            escape(check.name),
            str(check.verified),
            str(check.breaches),
        )
        for check in checks
    )
    return _table(("result", "promise", "check", "verified", "broken"), rows)


def _broken(check: Check, by_number: dict[int, Operation]) -> str:
    """What a check found, with the operations around each breach."""
    if not check.shown and not check.unknown:
        return ""
    told = [_breach(breach, by_number) for breach in check.shown[: config.REPORT_BREACHES_MAX]]
    told += [f"<p>{escape(reason)}</p>" for reason in check.unknown]
    hidden = check.breaches - len(check.shown[: config.REPORT_BREACHES_MAX])
    more = f"<p>… and {hidden} more.</p>" if hidden > 0 else ""
    return f"<h3>{escape(check.name)}</h3>{''.join(told)}{more}"


def _breach(breach: Breach, by_number: dict[int, Operation]) -> str:
    around = [by_number[number] for number in breach.operations if number in by_number][: config.WINDOW_MAX]
    if not around:
        return f'<p class="broken">{escape(breach.sentence)}</p>'
    first = min(operation.invoked for operation in around)
    rows = (_operation(operation, first) for operation in around)
    heads = ("operation", "client", "asked", "outcome", "answered", "from", "to")
    return f'<p class="broken">{escape(breach.sentence)}</p>{report_charts.window(around)}{_table(heads, rows)}'


def _operation(operation: Operation, first: float) -> tuple[str, ...]:
    asked, answered = _short(operation.asked), _short(operation.answered)
    end = report_figures.ended(operation)
    return (
        f"{operation.number} {escape(operation.kind)}",
        escape(operation.process),
        f"<code>{asked}</code>",
        escape(operation.outcome),
        f"<code>{answered}</code>",
        f"{operation.invoked - first:.3f} s",
        f"{end - first:.3f} s",
    )


def _short(values: dict[str, Any]) -> str:
    """A document in a few words."""
    text = json.dumps(values, default=str)
    return escape(text if len(text) <= config.REPORT_VALUE_CHARACTERS_MAX else
                  text[: config.REPORT_VALUE_CHARACTERS_MAX] + "…")  # fmt: skip


def _faults(faults: Sequence[FaultFigures]) -> str:
    if not faults:
        return "<p>No fault was made.</p>"
    targets = sorted({name for fault in faults for name in fault.pauses})
    first = faults[0].began
    rows = (
        (
            f"{fault.began - first:.1f} s",
            escape(fault.name),
            escape(fault.detail),
            f"{fault.ended - fault.began:.1f} s",
            *(str(fault.counts[outcome]) for outcome in report_figures.OUTCOMES),
            *(f"{fault.pauses.get(name, 0.0):.2f} s" for name in targets),
            "–" if fault.recovery is None else f"{fault.recovery:.2f} s",
        )
        for fault in faults
    )
    heads = ("at", "fault", "of", "lasted", "done", "refused", "unknown", *(f"pause {name}" for name in targets),
             "next answer after healing")  # fmt: skip
    return _table(heads, rows)


def _charts(operations: Sequence[Operation], faults: Sequence[FaultFigures]) -> str:
    over = report_figures.span(operations)
    found = report_figures.buckets(operations, over)
    return (
        "<h3>Requests per second</h3>" + report_charts.throughput(found, over, faults)
        + "<h3>Latency of what was done: median and 99 %</h3>" + report_charts.latency(found, over, faults)
        + "<h3>Clients</h3>" + report_charts.timeline(report_figures.by_client(operations, over), over, faults)
    )  # fmt: skip


def _totals(operations: Sequence[Operation]) -> str:
    rows = []
    for kind, counts in sorted(report_figures.totals(operations).items()):
        median = report_figures.median_ms(operations, kind)
        rows.append((
            escape(kind), *(str(counts[outcome]) for outcome in report_figures.OUTCOMES),
            "–" if median is None else f"{median:.1f} ms",
        ))  # fmt: skip
    return _table(("operation", "done", "refused", "unknown", "median"), rows)


def _facts(facts: Facts) -> str:
    told = {"seed": str(facts.seed), "commit": facts.commit, "began": facts.began, **facts.details}
    return _table(("", ""), ((escape(name), escape(value)) for name, value in told.items()))


_PAGE = Template("""<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --soft: #5c6675; --rule: #d9dee6;
  --ok: #2f6fb3; --fail: #d08a00; --info: #b3261e; --fault: #f3d9d7; --good: #1b7a3d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --paper: #14181f; --soft: #9aa5b4; --rule: #2d3541;
  --ok: #6ba6e8; --fail: #e5b04a; --info: #ff8a80; --fault: #442a2c; --good: #6fcf8f; } }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 8px 0 16px; } h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 18px 0 4px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; }
td, th { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td { font-variant-numeric: tabular-nums; }
code, pre { font: 12.5px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; } pre { white-space: pre-wrap; }
.pass { color: var(--good); } .broken { color: var(--info); } .undecided { color: var(--fail); }
.nothing, .soft { color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
.ok { fill: var(--ok); } .fail { fill: var(--fail); } .info { fill: var(--info); } .fault { fill: var(--fault); }
.grid { stroke: var(--rule); stroke-width: 1; } text { fill: var(--soft); font: 11px system-ui, sans-serif; }
text.name { text-anchor: end; } text.tick { text-anchor: middle; }
polyline { fill: none; stroke-width: 1.5; } .p50 { stroke: var(--ok); } .p99 { stroke: var(--fail); }
.key { display: inline-block; width: 11px; height: 11px; margin: 0 5px 0 14px; }
.key.ok { background: var(--ok); } .key.fail { background: var(--fail); } .key.info { background: var(--info); }
.key.fault { background: var(--fault); }
</style>
</head>
<body>
<h1 class="$result">$verdict</h1>
$checks
$broken
<h2>Faults</h2>
<p class="soft">A pause is a time in which nothing was acknowledged by that process's clients.</p>
$faults
<h2>Through time</h2>
<p class="soft"><span class="key ok"></span>done <span class="key fail"></span>refused
<span class="key info"></span>outcome unknown <span class="key fault"></span>a fault is in force (point at it)</p>
$charts
<h2>What was asked</h2>
$totals
<h2>Repeat it</h2>
<pre>$command</pre>
$facts
</body>
</html>
""")
