"""One self-contained HTML file about runs: verdicts side by side, and of each run its picture, plan and evidence."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trio_rmq.testing.chaos.judge import TITLES, Verdict, plural
from trio_rmq.testing.chaos.picture import draw
from trio_rmq.testing.chaos.runner import Result
from trio_rmq.testing.chaos.series import make_series

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6776; --line: #d9dee6; --kept: #1a7f4b; --broken: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .3rem 0; } .soft, .small { color: var(--soft); }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.small { font-size: .85rem; }
.kept { color: var(--kept); font-weight: 600; } .broken { color: var(--broken); font-weight: 600; }
.none { color: var(--soft); }
details { margin: .2rem 0; } summary { cursor: pointer; } code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: #f5f7fa; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
svg { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; background: #fff; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .small { font-size: 10.5px; fill: var(--soft); } svg .title { font-weight: 600; }
svg .serving { fill: #9cc5a8; } svg .fault { fill: #c2544c; } svg .grid { stroke: #eceff3; }
svg .axis { stroke: #8b95a3; } svg .mark { stroke: #8b95a3; stroke-dasharray: 3 3; }
svg .line { fill: none; stroke-width: 1.6; } svg .acknowledged { stroke: #1f6fb5; }
svg .refused { stroke: #c2544c; } svg .consumed { stroke: #3a8f5b; stroke-dasharray: 5 2; }
svg .median { stroke: #1f6fb5; } svg .p99 { stroke: #d08a1d; } svg .maximum { stroke: #b9c0ca; }
svg .dot { fill: #5d6776; stroke: none; }
"""
_WORDS = {"kept": "kept", "broken": "broken", "not exercised": "not exercised"}
_CLASSES = {"kept": "kept", "broken": "broken", "not exercised": "none"}


def render(results: Sequence[Result]) -> str:
    """The whole page; runs of one scenario stand side by side in its table, in the order given."""
    broken = [result for result in results if result.broken]
    verdict = (
        f'<span class="broken">{len(broken)} of {len(results)} runs broke a promise</span>'
        if broken
        else f'<span class="kept">all promises kept in {plural(len(results), "run")}</span>'
    )
    scenarios = list(dict.fromkeys(result.scenario for result in results))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Chaos: {escape(', '.join(scenarios))}</title><style>{_STYLE}</style>",
        f"<h1>Chaos report</h1><p>{verdict}</p>",
    ]
    if len(scenarios) > 1:
        parts.append(_overview(results, scenarios))
    parts += [_section([result for result in results if result.scenario == scenario]) for scenario in scenarios]
    parts.append("</html>")
    return "\n".join(parts)


def _overview(results: Sequence[Result], scenarios: Sequence[str]) -> str:
    systems = list(dict.fromkeys(result.system for result in results))
    found = {(result.scenario, result.system): result for result in results}
    rows = []
    for scenario in scenarios:
        cells = "".join(f"<td>{_summary(found.get((scenario, system)))}</td>" for system in systems)
        rows.append(f'<tr><td><a href="#{_anchor(scenario)}">{escape(scenario)}</a></td>{cells}</tr>')
    heads = "".join(f"<th>{escape(system)}</th>" for system in systems)
    return f"<table><tr><th>scenario</th>{heads}</tr>{''.join(rows)}</table>"


def _summary(result: Result | None) -> str:
    if result is None:
        return '<span class="none">not run</span>'
    if result.broken:
        return (
            f'<span class="broken">broken: {escape(", ".join(verdict.invariant for verdict in result.broken))}</span>'
        )
    return '<span class="kept">kept</span>'


def _anchor(scenario: str) -> str:
    return escape(scenario.replace(" ", "-"), quote=True)


def _section(results: Sequence[Result]) -> str:
    first = results[0]
    parts = [f'<h2 id="{_anchor(first.scenario)}">{escape(first.scenario)}</h2><p>{escape(first.about)}</p>']
    parts.append(_verdicts(results))
    for result in results:
        parts.append(f"<h3>{escape(result.system)}, seed {result.seed}, {result.seconds:.0f} s</h3>")
        parts.append(draw(make_series(result.events, result.seconds)))
        parts.append(_plan(result))
    return "\n".join(parts)


def _verdicts(results: Sequence[Result]) -> str:
    heads = "".join(f"<th>{escape(result.system)}</th>" for result in results)
    rows = []
    for number, (name, title) in enumerate(TITLES.items()):
        cells = "".join(_cell(result.verdicts[number]) for result in results)
        rows.append(f"<tr><td><b>{escape(name)}</b><br><span class=soft>{escape(title)}</span></td>{cells}</tr>")
    return f"<table><tr><th>invariant</th>{heads}</tr>{''.join(rows)}</table>"


def _cell(verdict: Verdict) -> str:
    text = f'<span class="{_CLASSES[verdict.state]}">{_WORDS[verdict.state]}</span>'
    if verdict.counted:
        text += f'<br><span class="small">{escape(verdict.counted)}</span>'
    if verdict.evidence:
        rest = verdict.broken - len(verdict.evidence)
        lines = [*verdict.evidence, *([f"and {rest} more"] if rest else [])]
        text += _details(plural(verdict.broken, "time"), lines, opened=True)
    return f"<td>{text}</td>"


def _plan(result: Result) -> str:
    parts = [_details(f"the plan: {plural(len(result.plan), 'fault')}", result.plan)]
    if result.deeds:
        done = [f"{count:6} x {what}" for what, count in sorted(result.deeds.items())]
        parts.append(_details("faults that calls of disks met", done))
    if result.impossible:
        parts.append(f"<p class=soft>Not possible with this system: {escape('; '.join(result.impossible))}.</p>")
    return "".join(parts)


def _details(summary: str, lines: Sequence[str], *, opened: bool = False) -> str:
    """Lines that unfold."""
    text = escape("\n".join(lines))
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary><pre>{text}</pre></details>"
