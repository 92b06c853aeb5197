"""The op's tables: `python -m benchmarks.table`. All contenders take turns in one process, so the ratios hold on a
noisy machine. Writes JSON after every row, prints Markdown, and puts it into the README where asked to.
"""

import argparse
import json
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness import CONTENDERS, KINDS, Setup
from benchmarks.report import add_options, place, publish, save
from benchmarks.shapes import Case, all_cases, default_cases
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.text import microseconds, ratio, table

HEAD = ("eager us", "compile us", "ours us", "limit us", "eager/ours", "compile/ours", "ours/limit")
MARK = "se table: python -m benchmarks.table"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument(
        "-k", default="", metavar="WORDS", help='only cases with these words, as in "seresnet50 8x nhwc"'
    )
    parser.add_argument("--all", action="store_true", help="every shape, batch size, layout and dtype (hours)")
    parser.add_argument("--passes", nargs="+", choices=KINDS, default=list(KINDS), help="default: all of them")
    parser.add_argument("--seconds", type=float, default=1.0, help="timing per row, shared by its contenders")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--update", action="store_true", help="keep the rows of the JSON file that are not taken anew")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    add_options(parser, "se")
    return parser.parse_args()


def measure(case: Case, kinds: list[str], seconds: float, with_compile: bool) -> list[dict[str, Any]]:
    """A row per pass: median seconds of each contender."""
    setup = Setup(case)
    rows = []
    for kind in kinds:
        passes = {name: setup.contender(name, kind) for name in CONTENDERS if name != "compile"}
        problem = None
        if with_compile and KINDS[kind].compiled:
            passes["compile"] = setup.contender("compile", kind, setup.compile(kind))
            try:
                passes["compile"]()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                del passes["compile"]
        times = interleave(passes, seconds, timed=lambda one: one())
        row = {"case": case.id, "pass": kind, "seconds": times, "believable": times.believable}
        rows.append({**row, "compile_error": problem})
    return rows


def markdown(results: dict[str, Any]) -> str:
    """A table for each pass."""
    where = f"{place(results)}; torch {results['versions']['torch']}"
    order = {case.id: at for at, case in enumerate(default_cases())}
    parts = [f"{results['date'][:10]}, {where}. Median microseconds of the calls that kept their cores."]
    for kind, (ours, limit, _) in KINDS.items():
        rows = []
        of_kind = [row for row in results["rows"] if row["pass"] == kind]
        for row in sorted(of_kind, key=lambda row: order.get(row["case"], len(order))):
            eager, compiled, own, least = (row["seconds"].get(name) for name in CONTENDERS)
            times = [microseconds(value) for value in (eager, compiled, own, least)]
            name = row["case"] if row["believable"] else f"{row['case']} (busy: do not believe)"
            rows.append([name, *times, ratio(eager, own), ratio(compiled, own), ratio(own, least)])
        if rows:
            parts += [f"**{kind}**: {ours}. Limit: `{limit}`.", table((kind, *HEAD), rows)]
    return "\n\n".join(parts)


def main() -> None:
    options = arguments()
    words = options.k.split()
    cases = all_cases() if options.all else default_cases()
    cases = [case for case in cases if all(any(part.startswith(word) for part in case.id.split()) for word in words)]
    if options.list:
        print("\n".join(case.id for case in cases))
        return
    if not cases:
        raise SystemExit(f"no case has all of {words}; --list shows them")
    results: dict[str, Any] = {**surroundings("numpy"), "rows": []}
    if options.update:
        taken = {(case.id, kind) for case in cases for kind in options.passes}
        rows = json.loads(options.json.read_text())["rows"]
        results["rows"] = [row for row in rows if (row["case"], row["pass"]) not in taken]
    progress = tqdm(cases)
    for case in progress:
        progress.set_description(case.id)
        results["rows"] += measure(case, options.passes, options.seconds, not options.no_compile)
        save(options, results)
        torch._dynamo.reset()
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()
