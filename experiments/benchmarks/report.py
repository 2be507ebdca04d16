"""The tables of the meta-step benchmark, as text."""

from typing import Any

import tabulate

from experiments.benchmarks import comparison
from experiments.benchmarks.contenders import OURS
from experiments.benchmarks.work import EVALUATION

NOTES = f"""\
ms: median over all timed steps of a meta-step, loss and meta-gradient, [quartiles].
ratio: the fastest contender that is not keras_maml, divided by {OURS!r}.
share: arithmetic / time / sgemm; the arithmetic is that of convolutions and dense layers in the
  direct form (see work.py), sgemm the better library's product of 2048 x 2048 float32 matrices.
first: seconds to the first result, compilation included. peak: resident memory above that before
  the first step, compilation included; of steps: without it. The numbers of a line are taken in
  turns, in one run.
float64: the greatest relative error of loss or meta-gradient on two tasks computed in float64,
  {comparison.EXACT:.0e} is allowed. float32: that of the timed program; what is allowed is how much
  the float64 result changes when weights and inputs are perturbed by 2^-18 (see comparison.py).
"""


def tables(records: dict[str, dict]) -> str:
    """Returns all tables for which there are records.

    Args:
        records: By key: a line and its order, ``scaling ...`` or ``memory ...``.
    """
    lines = {k: r for k, r in records.items() if k.split()[0] not in ("scaling", "memory")}
    parts = [_summary(lines)] if lines else []
    parts += [_line(record) for record in lines.values()]
    for title, name, column in (
        ("Tasks per meta-batch, Omniglot 5-way 1-shot, 1 query", "scaling", "ms per task"),
        ("Memory, mini-ImageNet 5-way 1-shot, 15 queries, 4 tasks unless said", "memory", "ms"),
    ):
        rows = [r for k, r in records.items() if k.split()[0] == name]
        if rows:
            parts.append(_extra(title, rows, column))
    return "\n\n".join([*parts, NOTES.rstrip()])


def sgemm(record: dict[str, Any]) -> float:
    """Returns the better library's rate, over the start and the end of a line."""
    return max(sum(rates) / len(rates) for rates in record["sgemm"].values())


def _summary(records: dict[str, dict]) -> str:
    names = list(
        dict.fromkeys(name for record in records.values() for name in record["contenders"])
    )
    rows = []
    for record in records.values():
        medians = {n: f["median_ms"] for n, f in record["contenders"].items() if f}
        others = [ms for name, ms in medians.items() if not name.startswith(OURS)]
        row = [record["line"], record["title"], record["order"]]
        row += [_ms(medians.get(name)) for name in names]
        own = medians.get(OURS)
        row.append(f"{min(others) / own:.2f}" if own and others else "-")
        row.append(_share(record, own))
        rows.append(row)
    headers = ["", "work", "order", *names, "ratio", "share"]
    return "Milliseconds per meta-step\n" + _table(rows, headers)


def _line(record: dict[str, Any]) -> str:
    rows = []
    for name, figures in record["contenders"].items():
        if figures is None:
            limit = f"> {record['limit']:.0f} s to the first result, timed or checked in float64"
            rows.append([name, limit])
            continue
        low, high = figures["quartiles_ms"]
        worst = [
            max(figures[f"{d}_loss_error"], figures[f"{d}_gradient_error"])
            for d in ("float64", "float32")
        ]
        rows.append(
            [
                name,
                f"{_ms(figures['median_ms'])} [{_ms(low)}, {_ms(high)}]",
                figures["steps"],
                _share(record, figures["median_ms"]),
                f"{figures['first_seconds']:.1f}",
                f"{figures['peak_gb']:.2f}",
                f"{figures['peak_gb_of_steps']:.2f}",
                *(f"{error:.0e}" for error in worst),
            ]
        )
    headers = ["contender", "ms", "steps", "share", "first, s", "peak, GB", "of steps, GB"]
    headers += ["float64", "float32"]
    bounds = [f"loss {record['bounds']['loss']:.0e}"]
    if record["order"] != EVALUATION:
        bounds.append(f"meta-gradient {record['bounds']['gradient']:.0e}")
    return (
        f"Line {record['line']}: {record['title']}, {record['tasks']} tasks, {record['order']}\n"
        f"{record['arithmetic'] / 1e9:.3g} GFLOP, sgemm {sgemm(record) / 1e9:.0f} GFLOP/s; allowed "
        f"in float32: {', '.join(bounds)}\n" + _table(rows, headers)
    )


def _extra(title: str, records: list[dict], column: str) -> str:
    rows = []
    for record in records:
        figures = record["figures"]
        ms = figures["median_ms"] / record.get("divide_by", 1)
        memory = [f"{figures[name]:.2f}" for name in ("peak_gb", "peak_gb_of_steps")]
        rows.append([record["title"], _ms(ms), f"{figures['first_seconds']:.1f}", *memory])
    return f"{title}\n" + _table(rows, ["", column, "first, s", "peak, GB", "of steps, GB"])


def _share(record: dict[str, Any], ms: float | None) -> str:
    return f"{100 * record['arithmetic'] / (ms / 1e3) / sgemm(record):.1f} %" if ms else "-"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _table(rows: list[list], headers: list[str]) -> str:
    return tabulate.tabulate(rows, headers, stralign="right", disable_numparse=True)
