"""The command line: `python -m senet_fast COMMAND`. Each command is a module of senet_fast.commands."""

import argparse
import os
import sys
from collections.abc import Sequence

from senet_fast._version import __version__
from senet_fast.commands import decode, demo, fuse, ids, info, range, sql

COMMANDS = (demo, fuse, ids, decode, range, sql, info)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m senet_fast", description="Fused Squeeze-and-Excitation for PyTorch, and Snowflake IDs."
    )
    top.add_argument("--version", action="version", version=f"senet_fast {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without a command it prints help."""
    top = parser()
    options = top.parse_args(arguments)
    if not hasattr(options, "run"):
        top.print_help()
        return 0
    if sys.stdout is None:
        print("error: stdout is closed", file=sys.stderr)
        return 1
    code: int = 0
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard_output()  # the reader (head, less) has what it wanted
        return code
    except OSError as error:
        discard_output()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def discard_output() -> None:
    """Send to nowhere what the interpreter would flush to stdout at exit, and fail at again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
