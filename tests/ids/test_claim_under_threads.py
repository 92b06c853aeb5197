"""The claim hammered by native threads: under the interpreter's lock Python threads hardly meet in it."""

import subprocess
from pathlib import Path

import needs
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_claims_are_unique_under_native_threads(tmp_path: Path) -> None:
    compiler = needs.program("g++")
    program = tmp_path / "snowflake_test"
    source = ROOT / "tests/csrc/snowflake_test.cpp"
    flags = ["-std=c++17", "-O2", f"-I{ROOT / 'csrc'}", "-pthread"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True, timeout=240)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
