"""The op's table: `python -m benchmarks.table`. All contenders take turns in one process, so the ratios hold on a noisy
machine. Writes JSON after every row, prints Markdown, and puts it into the README where asked to.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness import CONTENDERS, PASSES, Setup
from benchmarks.shapes import Case, all_cases, default_cases
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.text import microseconds, ratio, table

HEAD = ("case", "pass", "eager us", "compile us", "ours us", "copy us", "eager/ours", "compile/ours", "ours/copy")
MARK = "se table: python -m benchmarks.table"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument(
        "-k", default="", metavar="WORDS", help='only cases with these words, as in "seresnet50 8x nhwc"'
    )
    parser.add_argument("--all", action="store_true", help="every shape, batch size, layout and dtype (hours)")
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=["forward", "step"], help="default: forward step"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="timing per row, shared by its contenders")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/se.json"), help="default: %(default)s")
    parser.add_argument("--readme", type=Path, help="replace the table between its two marks in this file")
    return parser.parse_args()


def measure(case: Case, passes: list[str], seconds: float, with_compile: bool) -> list[dict[str, Any]]:
    """A row per pass: median seconds of each contender."""
    setup = Setup(case)
    compiled, problem = None, None
    if with_compile:
        try:
            compiled = setup.compile()
            for kind in passes:
                setup.contender("compile", kind, compiled)()
        except Exception as error:
            compiled, problem = None, f"{type(error).__name__}: {error}"
    names = [name for name in CONTENDERS if name != "compile" or compiled is not None]
    rows = []
    for kind in passes:
        passes_of = {name: setup.contender(name, kind, compiled) for name in names}
        times = interleave(passes_of, seconds, timed=lambda one: one())
        row = {"case": case.id, "pass": kind, "seconds": times, "believable": times.believable}
        rows.append({**row, "compile_error": problem})
    return rows


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        eager, compiled, ours, copy = (row["seconds"].get(name) for name in CONTENDERS)
        times = [microseconds(value) for value in (eager, compiled, ours, copy)]
        name = row["case"] if row["believable"] else f"{row['case']} (busy: do not believe)"
        rows.append([name, row["pass"], *times, ratio(eager, ours), ratio(compiled, ours), ratio(ours, copy)])
    machine, build = results["machine"], results["build"]
    where = f"{machine['cpu']}, {machine['threads']} threads, {build['isa']}; torch {results['versions']['torch']}"
    note = "Median microseconds of the calls that kept their cores; copy is `y.copy_(x)`, one read and one write of x."
    return f"{results['date'][:10]}, {where}. {note}\n\n{table(HEAD, rows)}"


def into_readme(path: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end of mark -->`."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path} lacks the marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


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
    options.json.parent.mkdir(parents=True, exist_ok=True)
    progress = tqdm(cases)
    for case in progress:
        progress.set_description(case.id)
        results["rows"] += measure(case, options.passes, options.seconds, not options.no_compile)
        options.json.write_text(json.dumps(results, indent=2) + "\n")
        torch._dynamo.reset()
    print(markdown(results))
    if options.readme:
        into_readme(options.readme, MARK, markdown(results))


if __name__ == "__main__":
    main()
