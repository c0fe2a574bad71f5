"""200 random synthetic tables with a known Bayes optimum: does `adaptive` ever hurt, and how close does it come?

    python benchmarks/decision_synthetic.py [--tables 200] [--strong] [--jobs 2] [--json FILE]

With --strong the reliabilities of every table differ between fit and test, twice as much (factors exp(N(0, 1))).

Prints every table, worst cases first, then regret and failure rates.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_tables import make_table

from hf_mmbalance.decision.allocation import Allocation
from hf_mmbalance.decision.evaluation import prior_sum
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.metrics.measures import bootstrap_ci, clip_nll, correct


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--strong", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        results = []
        for found in pool.map(judge, range(arguments.tables), [arguments.strong] * arguments.tables):
            results.append(found)
            print(f"{len(results)}/{arguments.tables} {found['chosen']} {found['margin']:+.4f}"
                  f"{' FAILS' if found['fails'] else ''}", file=sys.stderr, flush=True)  # fmt: skip
    passed = report(results, time.perf_counter() - start)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0 if passed else 1


def judge(seed: int, strong: bool = False) -> dict[str, Any]:
    """Return accuracy and NLL of every method on one table, and the paired comparison with the better fallback."""
    table = make_table(seed, strong)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        allocation = Allocation().fit(table.fit_logits, table.fit_labels, table.fit_groups)
    ladder = allocation.ladder_
    plain = HeadState.plain_sum(*table.fit_logits.shape[1:])
    fusions = {"bayes": table.bayes, "sum": plain.fuse(table.test_logits).logits}
    for name, state in {
        **{k: v for k, v in ladder.states.items() if k != "sum"},
        "prior_sum": prior_sum(allocation),
        "adaptive": allocation.state_,
    }.items():
        fusions[name] = state.fuse(table.test_logits).logits
    hits = {name: correct(logits, table.test_labels) for name, logits in fusions.items()}
    accuracy = {name: float(hit.mean()) for name, hit in hits.items()}
    loss = {name: float(clip_nll(logits, table.test_labels).mean()) for name, logits in fusions.items()}
    rival = max(("sum", "best_single"), key=lambda name: accuracy[name])
    low, high = bootstrap_ci(hits["adaptive"] - hits[rival], table.test_groups)
    return {
        "seed": seed, "table": table.description, "shifted": table.shifted, "chosen": allocation.chosen_,
        "accuracy": accuracy, "nll": loss, "rival": rival,
        "margin": accuracy["adaptive"] - accuracy[rival], "margin_ci": [low, high], "fails": high < 0,
    }  # fmt: skip


def report(results: list[dict[str, Any]], seconds: float) -> bool:
    """Print the tables, worst first, and the promised figures; return True if all of these hold."""
    print(f"{'seed':>4s} {'shift':>5s} {'margin':>7s} {'95 % CI':>17s} {'rival':12s} {'chosen':12s} table")
    for r in sorted(results, key=lambda r: r["margin"]):
        low, high = r["margin_ci"]
        print(f"{r['seed']:4d} {r['shifted']:>5.5s} {100 * r['margin']:7.2f}"
              f" [{100 * low:7.2f},{100 * high:7.2f}] {r['rival']:12s} {r['chosen']:12s} {r['table']}")  # fmt: skip
    names = ["sum", "prior_sum", "best_single", "temperature", "global", "bias", "vector", "class", "dirichlet",
             "adaptive"]  # fmt: skip
    print(f"\n{'method':12s} {'tables':>6s} {'regret':>7s} {'95 % CI':>15s} {'nll regret':>10s}  less best [95 % CI]")
    regrets = {n: np.array([r["accuracy"]["bayes"] - r["accuracy"].get(n, np.nan) for r in results]) for n in names}
    extra = {n: np.array([r["nll"].get(n, np.nan) - r["nll"]["bayes"] for r in results]) for n in names}
    everywhere = [n for n in names if np.isfinite(regrets[n]).all()]
    best = min(everywhere, key=lambda n: regrets[n].mean())
    for n in names:
        there = np.isfinite(regrets[n])
        low, high = bootstrap_ci(regrets[n][there])
        gap = bootstrap_ci((regrets[n] - regrets[best])[there]) if n != best else (0.0, 0.0)
        print(f"{n:12s} {there.sum():6d} {100 * regrets[n][there].mean():7.2f} [{100 * low:6.2f},{100 * high:6.2f}]"
              f" {extra[n][there].mean():10.3f} {'':8s}[{100 * gap[0]:6.2f},{100 * gap[1]:6.2f}]")  # fmt: skip
    kinds = sorted({r["shifted"] for r in results})
    rates = {s: np.mean([r["fails"] for r in results if r["shifted"] == s]) for s in kinds}
    bounds = {"no": 0.015, "yes": 0.015, "strong": 0.06}
    gap = bootstrap_ci(regrets["adaptive"] - regrets[best]) if best != "adaptive" else (0.0, 0.0)
    ratio = regrets["adaptive"].mean() / regrets["sum"].mean()
    checks = {
        **{
            f"fails on {rate:.1%} of tables with shift '{s}' (at most {bounds[s]:.1%})": rate <= bounds[s]
            for s, rate in rates.items()
        },
        f"regret within noise of the best row ({best}): difference from {100 * gap[0]:.2f}": gap[0] <= 0,
        f"regret {1 - ratio:.0%} below the sum's (at least 20 %)": ratio <= 0.8,
        f"{seconds:.0f} s (under 30 minutes)": seconds < 1800,
    }
    print()
    for name, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")
    return all(checks.values())


if __name__ == "__main__":
    sys.exit(main())
