"""Where the table programs leave their results: JSON, standard output and the README."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """--json and --readme; `name` is the JSON file's."""
    default = Path("benchmarks/results") / f"{name}.json"
    parser.add_argument("--json", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--readme", type=Path, help="replace the table between its two marks in this file")


def place(results: dict[str, Any]) -> str:
    """The machine, for the line above a table."""
    machine = results["machine"]
    allocator = f", {machine['allocator']}" if machine["allocator"] else ""
    return f"{machine['cpu']}, {machine['threads']} threads, {results['build']['isa']}{allocator}"


def save(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write the JSON file; programs that run long do so after every row."""
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")


def publish(options: argparse.Namespace, results: dict[str, Any], mark: str, text: str) -> None:
    """Save, print, and where asked to put `text` between `<!-- mark -->` and `<!-- end of mark -->`."""
    save(options, results)
    print(text)
    if options.readme is None:
        return
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = options.readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{options.readme} lacks the marks {begin} and {end}")
    options.readme.write_text(f"{before}{begin}\n{text}\n{end}{after}")
