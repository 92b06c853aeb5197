"""The command line: `python -m senet_fast COMMAND`. Each command is a module of senet_fast.commands."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from senet_fast._version import __version__
from senet_fast.commands import (
    UsageError,
    build,
    complain,
    decode,
    demo,
    discard,
    flush_stderr,
    fuse,
    ids,
    info,
    leases,
    range,
    sql,
    word,
)

COMMANDS = (demo, fuse, ids, decode, range, sql, leases, word, build, info)


class Parser(argparse.ArgumentParser):
    """Bad arguments are exit code 2 also where their message cannot be written, where the argparse of 3.11.2 raises."""

    def error(self, message: str) -> NoReturn:
        with contextlib.suppress(OSError):
            super().error(message)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m senet_fast", description="Fused Squeeze-and-Excitation for PyTorch, and Snowflake IDs."
    )
    top.add_argument("--version", action="version", version=f"senet_fast {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without a command it prints help."""
    if sys.stderr is None:  # closed: print() and argparse would write to stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        complain("error", "stdout is closed")
        return 1
    top = parser()
    options = argparse.Namespace(code=0)  # a command notes there what it could not do before its output breaks off
    try:
        try:
            top.parse_args(arguments, options)
            if options.command is None:
                top.print_help()
            else:
                options.code = options.run(options)
        finally:
            flush_stderr()
            sys.stdout.flush()  # what argparse printed before it exits, or a command before an error, too
    except BrokenPipeError:
        discard(sys.stdout)  # the reader (head, less) has what it wanted
    except UsageError as error:
        complain(options.command, error)
        options.code = 2
    except OSError as error:
        discard(sys.stdout)
        complain("error", error)
        options.code = 1
    except KeyboardInterrupt:
        options.code = 130
    return int(options.code)
