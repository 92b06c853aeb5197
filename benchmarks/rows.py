"""The command line of a benchmark, its rows and its files: NAME.json and, rendered from it, NAME.md."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from senet_fast.measure import surroundings
from senet_fast.text import microseconds, ratio, table

RESULTS = Path("benchmarks/results")
BUSY = "Busy: other programs took the cores in nearly every pass, so no ratios are shown."

Results = dict[str, Any]  # date, machine, versions, build, and "rows": a list of dicts with "mode" and "date"
Markdown = Callable[[Results], str]


class Row(Protocol):
    """`id`: its words, with a space between them."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)


def command(name: str, doc: str, example: str, seconds: float | None = None) -> argparse.ArgumentParser:
    """A parser with -k, --list, --results, --replace and, where rows are timed, --seconds.

    `name` is that of the files, and the first line of `doc` their title, which names the command in backquotes.
    """
    title, _, more = doc.partition("\n")
    program = title.split("`")[1]
    parser = argparse.ArgumentParser(prog=program, description=more)
    parser.set_defaults(name=name, title=title.removesuffix("."))
    parser.add_argument(
        "-k",
        default="",
        metavar="WORDS",
        help=f'only rows with these words, as in "{example}"; * stands for any letters',
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the files (default: %(default)s)")
    parser.add_argument(
        "--replace", action="store_true", help="drop rows that another machine or version has left there"
    )
    if seconds is not None:
        parser.add_argument(
            "--seconds",
            type=float,
            default=seconds,
            help="timing a row, shared by its contenders (default: %(default)s)",
        )
    return parser


def run(
    options: argparse.Namespace,
    rows: Sequence[R],
    measure: Callable[[R], dict[str, Any]],
    markdown: Markdown,
    *packages: str,
    every: Sequence[R] | None = None,
) -> None:
    """Measure the rows that -k selects, one by one; both files are written after each, and the tables printed at last.

    Rows of earlier runs stay beside them, in the order of `every` (default: `rows`), if machine and versions (of
    `packages`, too) are the same. Files of another machine or of other versions are left alone without --replace.
    """
    chosen = selected(options, rows)
    path = options.results / f"{options.name}.json"
    where = surroundings(*packages)
    done = {row["mode"]: row for row in earlier(path, where, options.replace)}
    results: Results = {**where, "rows": []}
    for row in (progress := tqdm(chosen)):
        progress.set_description(row.id)
        done[row.id] = {"mode": row.id, "date": where["date"], **measure(row)}
        results["rows"] = [done[one.id] for one in every or rows if one.id in done]
        write(path, results, options.title, markdown)
    print(path.with_suffix(".md").read_text())


def selected(options: argparse.Namespace, rows: Sequence[R]) -> list[R]:
    """Those with all words of -k. Exits where --list asks for them, and where there is none."""
    words = options.k.split()
    found = [row for row in rows if all(any(fnmatchcase(part, word) for part in row.id.split()) for word in words)]
    if not found:
        raise SystemExit(f"no row has all of {options.k!r}; --list shows them")
    if options.list:
        print("\n".join(row.id for row in found))
        raise SystemExit(0)
    return found


def earlier(path: Path, where: Mapping[str, Any], replace: bool) -> list[dict[str, Any]]:
    """The rows of the file, if there is one."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    other = [key for key in ("machine", "versions") if found[key] != where[key]]
    if not other:
        return found["rows"]
    text = f"{path}: its {len(found['rows'])} rows were taken with another {' and other '.join(other)}"
    if not replace:
        raise SystemExit(f"{text}; --results FOLDER writes elsewhere, --replace drops them")
    print(text)
    return []


def write(path: Path, results: Results, title: str, markdown: Markdown) -> None:
    """The JSON file and the Markdown file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    path.with_suffix(".md").write_text(f"# {title}\n\n{head(results)}\n\n{markdown(results)}\n")


def head(results: Results) -> str:
    """When, where and with what the rows were taken."""
    machine = results["machine"]
    dates = sorted({row.get("date", results["date"])[:10] for row in results["rows"]}) or [results["date"][:10]]
    versions = ", ".join(f"{name} {version or '-'}" for name, version in results["versions"].items())
    parts = [
        " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        *(machine["cpu"], f"{machine['threads']} threads", results["build"]["isa"]),
        *filter(None, [machine.get("allocator")]),
    ]
    busy = [] if all(row.get("believable", True) for row in results["rows"]) else [BUSY]
    return " ".join([f"{', '.join(parts)}; {versions}.", *busy])


def name_of(row: Mapping[str, Any]) -> str:
    return row["mode"] + ("" if row.get("believable", True) else " (busy)")


def comparison(
    rows: Sequence[Mapping[str, Any]],
    contenders: Sequence[str],
    ratios: Sequence[tuple[str, str]],
    unit: str = "ms",
    first: str = "network, pass, batch",
    more: Mapping[str, Callable[[Any], object]] | None = None,
) -> str:
    """A table of each contender's time, of ratios of two of them, and of what functions of a row find, by their heads.

    What a row's "seconds" lack is "-", and so are the ratios where it is not believable.
    """
    show = {"us": microseconds, "ms": lambda seconds: "-" if seconds is None else f"{seconds * 1e3:.2f}"}[unit]
    more = more or {}
    lines = []
    for row in rows:
        seconds, believable = row["seconds"], row.get("believable", True)
        pairs = [ratio(seconds.get(one), seconds.get(other)) if believable else "-" for one, other in ratios]
        lines.append([name_of(row), *(show(seconds.get(name)) for name in contenders), *pairs])
        lines[-1] += [str(find(row)) for find in more.values()]
    heads = [first, *(f"{name} {unit}" for name in contenders), *(f"{one}/{other}" for one, other in ratios), *more]
    return table(heads, lines)
