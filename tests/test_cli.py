"""The command line, run as users run it: help, pipes, bad lines, JSON."""

import json
import shlex
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "senet_fast"]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_no_command_prints_help() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n    {command} " in done.stdout for command in ("demo", "ids", "decode", "info"))


def test_ids_increase_and_decode() -> None:
    drawn = run("ids", "-n", "10000", "--worker-id", "7")
    ids = [int(line) for line in drawn.stdout.splitlines()]
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert ids == sorted(set(ids))
    assert len(ids) == 10000
    decoded = run("decode", stdin=drawn.stdout.encode())
    rows = [line.split("\t") for line in decoded.stdout.splitlines()]
    assert [int(row[0]) for row in rows] == ids
    assert {row[2] for row in rows} == {"7"}
    assert rows[0][1].endswith("+00:00")


def test_hex_has_one_width_and_round_trips() -> None:
    drawn = run("ids", "-n", "3", "--layout", "wide", "--worker-id", "1", "--format", "hex").stdout
    assert {len(line) for line in drawn.splitlines()} == {16}
    decoded = run("decode", "--layout", "WIDE", "--format", "hex", stdin=drawn.encode())
    assert decoded.returncode == 0
    assert [line.split("\t")[0] for line in decoded.stdout.splitlines()] == drawn.split()


def test_no_ids_for_a_count_of_zero() -> None:
    done = run("ids", "-n", "0", "--worker-id", "1")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_layout_without_workers_needs_no_worker_id() -> None:
    done = run("ids", "--layout", "local")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout)


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
        done = subprocess.run([*COMMAND, "ids", "--worker-id", "1"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [("ids --worker-id 1", "stdout"), ("decode 1", "stdout"), ("info", "stdout"), ("decode", "stdin")],
)
def test_a_closed_stream_is_one_message(arguments: str, closed: str) -> None:
    shell = shlex.join([*COMMAND, *arguments.split()]) + (" >&-" if closed == "stdout" else " <&-")
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {closed} is closed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ids", "--worker-id", "1024"], "1024"),
        (["ids"], "--worker-id is missing; expected 0 to 1023, and another one for every process"),
        (["ids", "--layout", "nobody"], "'nobody'; expected one of"),
        (["ids", "-n", "-1"], "-1"),
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


def test_decode_keeps_the_good_lines() -> None:
    lines = [b"175928847299117063", b"", b"12x", b"\xff\xfe", b"-5", b"99999999999999999999", b"1_0", b"0"]
    done = run("decode", stdin=b"\n".join(lines))
    assert done.returncode == 1
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["175928847299117063", "2012-03-03T13:01:20.453+00:00", "32", "7"]
    assert rows[1] == ["0", "2010-11-04T01:42:54.657+00:00", "0", "0"]
    assert len(rows) == 2
    complaints = done.stderr.splitlines()
    assert [complaint.split(":")[1].strip() for complaint in complaints] == [f"line {line}" for line in range(3, 8)]
    assert "'12x'" in complaints[0]


def test_decode_takes_arguments() -> None:
    done = run("decode", "175928847299117063", "twelve")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "'twelve'" in done.stderr


def test_info() -> None:
    done = run("info", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert facts["isa"] in facts["isas"]
    assert isinstance(facts["cuda"], bool)
    assert facts["threads"] >= 1
    text = run("info").stdout
    assert facts["senet_fast"] in text
    assert facts["torch"] in text


@pytest.mark.parametrize("command", ["ids --worker-id 1", "decode 1"])
def test_id_commands_load_neither_torch_nor_numpy(command: str) -> None:
    code = f"""
import sys
from senet_fast.cli import main
assert main({command.split()!r}) == 0
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
