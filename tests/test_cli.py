"""The command line, run as users run it: help, streams that are closed or full, bad arguments, networks."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import needs
import pytest
from cli_testing import COMMAND, lock_files, run  # noqa: F401 - the fixture is for every test here

from senet_fast import cli, commands

EVERY_COMMAND = ("demo", "fuse", "ids", "decode", "range", "sql", "leases", "word", "build", "info")


def test_no_command_prints_help() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n    {command} " in done.stdout for command in EVERY_COMMAND)


def test_a_reader_that_stops_is_no_error() -> None:
    with subprocess.Popen(
        [*COMMAND, "ids", "-n", "1000000", "--worker-id", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        int(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_a_full_disk_is_one_message() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "ids", "--worker-id", "1"], stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [("ids --worker-id 1", "stdout"), ("decode 1", "stdout"), ("info", "stdout"), ("decode", "stdin")],
)
def test_a_closed_stream_is_one_message(arguments: str, closed: str) -> None:
    shell = shlex.join([*COMMAND, *arguments.split()]) + (" >&-" if closed == "stdout" else " <&-")
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {closed} is closed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ids", "--worker-id", "1024"], "1024"),
        (["ids", "--layout", "nobody"], "'nobody'; expected one of"),
        (["ids", "-n", "-1"], "-1"),
        (["ids", "-n", "1_0"], "the number is '1_0'; expected a decimal number"),
        (["ids", "-n", "\u0661"], "expected a decimal number"),
        (["ids", "-n", "1e3"], "the number is '1e3'"),
        (["ids", "--worker-id", "\uff17"], "expected a decimal number"),
        (["ids", "--worker-id", "+7"], "the number is '+7'"),
        (["decode", "--tz", "Europe/Bonn", "1"], "'Europe/Bonn' is no time zone that this host knows"),
        (["decode", "--tz", "../UTC", "1"], "'../UTC' is no time zone"),
        (["decode", "--tz", "Europe", "1"], "'Europe' is no time zone"),
        (["decode", "--tz", "", "1"], "'' is no time zone"),
        (["ids", "--format", "roman"], "roman"),
        (["decode", "--layout", "nobody", "1"], "'nobody'"),
        (["nothing"], "nothing"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], named: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("ids --worker-id 1024", 2),
        ("ids --layout nobody", 2),
        ("ids -n x", 2),
        ("range 2016-05-01 2016-04-30", 2),
        ("range 1 2", 2),
        ("decode x", 1),
        ("decode --layout nobody 1", 2),
        ("decode --tz nowhere 1", 2),
        ("sql --dialect db2", 2),
        ("fuse plain", 2),
        ("fuse --seconds x torch.nn:Identity", 2),
        ("no-such-command", 2),
    ],
)
def test_messages_to_a_closed_stderr_go_nowhere(arguments: str, code: int) -> None:
    """print() writes to stdout where there is no stderr."""
    for stderr in ("2>&-", "2>/dev/full"):
        done = subprocess.run(
            ["bash", "-c", f"{shlex.join(COMMAND)} {arguments} {stderr}"], capture_output=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_bad_arguments_are_exit_code_2_where_argparse_raises_for_their_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of Python 3.11.2 does; later ones lose the message."""

    def print_message(parser: argparse.ArgumentParser, message: str, file: TextIO) -> None:
        file.write(message)

    monkeypatch.setattr(argparse.ArgumentParser, "_print_message", print_message)
    of_each_command = ([name, "--no-such-option"] for name in EVERY_COMMAND)
    for arguments in (["no-such-command"], ["range", "1", "2"], *of_each_command):
        with open("/dev/full", "w", buffering=1) as full, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", full)
            with pytest.raises(SystemExit) as raised:
                cli.main(arguments)
            assert raised.value.code == 2


def test_commands_complain_through_one_function() -> None:
    """Their messages are lost where nobody can read them, and nothing else is."""
    folder = Path(commands.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "sys.stderr" in path.read_text()] == ["__init__.py"]


@pytest.mark.parametrize("arguments", ["--help", "decode --help", "--version", ""])
def test_help_for_a_full_disk_is_one_message(arguments: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # argparse hides errors of unbuffered output
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has torch, or gets it for all that follows."""
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in facts["isas"]
    assert isinstance(facts["cuda"], bool)
    assert facts["threads"] >= 1
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert facts["senet_fast"] in text
    assert facts["torch"] in text


def test_sql() -> None:
    """tests/ids/test_sql.py gives it to databases."""
    for dialect in ("postgresql", "mysql", "sqlite", "clickhouse"):
        done = run("sql", "--dialect", dialect, "--layout", "sonyflake")
        assert (done.returncode, done.stderr) == (0, "")
        assert all(word in done.stdout for word in ("snowflake_timestamp", "snowflake_worker", "1409529600000"))
    assert "1288834974657" in run("sql", "--dialect", "sqlite").stdout
    for arguments, named in [
        (["--dialect", "db2"], "dialect is 'db2'; expected one of postgresql"),
        (["--dialect", "sqlite", "--layout", "nobody"], "'nobody'; expected one of"),
        ([], "--dialect"),
    ]:
        done = run("sql", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert named in done.stderr


@pytest.mark.parametrize(
    "command", ["ids --worker-id 1", "decode 1", "range 2024-01-01 2024-01-02", "sql --dialect mysql"]
)
def test_id_commands_load_neither_torch_nor_numpy(command: str) -> None:
    code = f"""
import sys
from senet_fast.cli import main
assert main({command.split()!r}) == 0
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


MODEL = """
import torch
from senet_fast import SEBlock
def network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), SEBlock(16, 4), torch.nn.BatchNorm2d(16))
def number():
    return 3
def sized(channels):
    return SEBlock(channels)
def near():
    block = network()
    block[1].fc1.register_forward_hook(print)
    return block
"""


@pytest.mark.slow
def test_fuse_reports_and_times(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    environment = {**os.environ, "PYTHONPATH": str(root)}  # the package may not be installed

    def fuse(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "fuse", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    done = fuse("mine:network", "--input", "2x3x8x9", "--seconds", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1     SEBlock  16        4       relu        sigmoid" in done.stdout
    assert re.search(r"before [0-9.]+ ms, after [0-9.]+ ms: [0-9.]+ times as fast", done.stdout)
    assert fuse("mine:network", "--seconds", "0").stdout.endswith("1 fused, 0 skipped\n")
    bad_input = fuse("mine:network", "--input", "2x4x8x9")
    assert bad_input.returncode == 1
    assert "does not take --input 2x4x8x9" in bad_input.stderr
    strict = fuse("mine:near", "--strict")
    assert strict.returncode == 1
    assert "1 (SEBlock): fc1 has hooks" in strict.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for wrong in ("mine:number", "mine:nothing", "mine:sized", "nowhere:model", "plain", "timm:no_such_network"):
        assert cli.main(["fuse", wrong]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"MODEL is '{wrong}'" in printed.err


@pytest.mark.slow
def test_fuse_takes_a_saved_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch = needs.library("torch")
    from senet_fast import SEBlock

    file = tmp_path / "block.pt2"
    torch.export.save(torch.export.export(SEBlock(8, 2), (torch.randn(2, 8, 5, 6),)), file)
    done = run("fuse", str(file), "--input", "2x8x5x6", "--seconds", "0.1")
    assert done.returncode == 0
    assert "(model)  GraphModule  8         4       relu        sigmoid" in done.stdout
    assert "times as fast" in done.stdout
    assert cli.main(["fuse", str(tmp_path / "none.pt2")]) == 2
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"not a program")
    capsys.readouterr()
    assert cli.main(["fuse", str(broken)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(f"fuse: MODEL is '{broken}': ")  # torch logs of its own before
