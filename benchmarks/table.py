"""The op beside eager, torch.compile and a copy: `python -m benchmarks.table`.

The SE layers of real networks in every pass; all contenders take turns in one process on the same x, so that the ratios
hold on a noisy machine. The limit is a plain tensor operation that moves the same bytes.
"""

from functools import lru_cache
from typing import Any

from benchmarks import rows
from benchmarks.harness import CONTENDERS, KINDS, Setup
from benchmarks.modes import Case
from benchmarks.shapes import all_cases, default_cases
from senet_fast.measure import interleave

RATIOS = [("eager", "ours"), ("compile", "ours"), ("ours", "limit")]
setup_of = lru_cache(maxsize=1)(Setup)


def measure(case: Case, seconds: float, with_compile: bool) -> dict[str, Any]:
    setup, problem = setup_of(case._replace(kind="")), None
    passes = {name: setup.contender(name, case.kind) for name in CONTENDERS if name != "compile"}
    if with_compile and KINDS[case.kind].compiled:
        try:
            passes["compile"] = setup.contender("compile", case.kind)
            passes["compile"]()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            passes.pop("compile", None)
    times = interleave(passes, seconds, timed=lambda one: one())
    return {"seconds": times, "believable": times.believable, "compile_error": problem}


def markdown(results: rows.Results) -> str:
    """A table for each pass."""
    parts = ["Median microseconds of the calls that kept their cores."]
    for kind, (ours, limit, _) in KINDS.items():
        if found := [row for row in results["rows"] if row["mode"].split()[-1] == kind]:
            parts += [f"**{kind}**: {ours}. Limit: `{limit}`."]
            parts += [rows.comparison(found, CONTENDERS, RATIOS, "us", "layer, pass")]
    failed = [row for row in results["rows"] if row["compile_error"]]
    return "\n\n".join([*parts, *(f"torch.compile failed, {row['mode']}: {row['compile_error']}" for row in failed)])


def main() -> None:
    parser = rows.command("se", __doc__, "seresnet50 8x* nhwc forward", seconds=1.0)
    parser.add_argument("--all", action="store_true", help="every shape, batch size, layout and dtype (hours)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    usual, every = (
        [case._replace(kind=kind) for case in cases for kind in KINDS] for cases in (default_cases(), all_cases())
    )
    rows.run(
        *(options, every if options.all else usual),
        *(lambda case: measure(case, options.seconds, not options.no_compile), markdown),
        every=list(dict.fromkeys([*usual, *every])),
    )


if __name__ == "__main__":
    main()
