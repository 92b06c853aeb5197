"""Every Python block of docs/interop.md runs, in a process and a folder of its own."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import needs
import pytest

needs.library("torch")
ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs/interop.md").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_blocks_of_interop(block: int, tmp_path: Path) -> None:
    program = textwrap.dedent(BLOCKS[block])
    for package in re.findall(r"^(?:from|import) (onnx\w*|peft|torchao|torch_pruning|accelerate|timm)", program, re.M):
        needs.library(package)
    if "torch.onnx" in program:
        needs.library("onnxscript")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{program}\n{done.stderr[-3000:]}"
