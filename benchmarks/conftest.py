"""pytest-benchmark over bench_*.py: `pytest benchmarks [--no-compile] [--every-shape] [-k "seresnet50 and step"]`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("senet_fast")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    group.addoption("--every-shape", action="store_true", help="every shape, batch, layout and dtype of shapes.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
