"""What every test shares. torch is imported where it is used: the generator tests run where it is not installed."""

import atexit
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import tiers
from hypothesis import settings

# The lock files of this process: the default folder is this user's, and is refused in containers.
os.environ["SENET_FAST_LEASES"] = tempfile.mkdtemp(prefix="senet_fast_leases-")
# And what Inductor compiles: by default one folder for all processes of this user, where another run of tests may
# leave files that are not whole when it is killed.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="senet_fast_inductor-")
for name in ("SENET_FAST_LEASES", "TORCHINDUCTOR_CACHE_DIR"):
    atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
# With an empty folder Inductor tries for 12 s, in each process, whether the compiler knows this processor's vectors.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one of several processes: together they have as many threads as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure, and CI draws new examples too, where hypothesis of itself would repeat the same.
settings.register_profile("senet_fast", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("senet_fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--installed", default="", metavar="NAMES", help="what is installed, so that no test is skipped for it"
    )
    parser.addoption(
        "--quick", action="store_true", help="leave out what is marked slow, and all but a few cases of each test"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): of pytest-xdist, which need not be installed")
    config.addinivalue_line("markers", "slow: takes seconds; make check leaves it out (tiers.py)")
    config.addinivalue_line("markers", "benchmark: of pytest-benchmark, likewise; some benchmarks are imported here")
    needs.installed = needs.parse(config.option.installed)
    if hasattr(config, "workerinput"):  # one of several processes: they collect the same tests and draw alike
        config.option.hypothesis_seed = config.workerinput["hypothesis_seed"]
    elif config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist, for each process that it starts."""
    node.workerinput["hypothesis_seed"] = node.config.option.hypothesis_seed


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What shares a server, something built or a GPU runs in one process, if there are several (--dist loadgroup)."""
    if config.option.quick:
        left = tiers.left_out(items, config.option.hypothesis_seed)
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]
    if "PYTEST_XDIST_WORKER" in os.environ:  # of what is in no group the long ones first: none is left alone at the end
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        shared = fixtures and any(made[-1].scope == "module" for made in fixtures.name2fixturedefs.values() if made)
        if shared or item.path.name.startswith("test_cuda"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist."""
    if config.option.dist != "loadgroup":
        return None
    from scheduling import Scheduling

    return Scheduling(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    if reporter := session.config.pluginmanager.get_plugin("terminalreporter"):
        reporter.write_line(
            f"--hypothesis-seed={session.config.option.hypothesis_seed} repeats the random tests of this run"
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.quick:
        reports = [report for kind in ("passed", "failed", "") for report in terminalreporter.stats.get(kind, [])]
        for line in tiers.unexpectedly_slow(reports):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def run_seed(pytestconfig: pytest.Config) -> int:
    """For the cases that a test draws by itself: another in each run, and --hypothesis-seed repeats it."""
    return random.Random(pytestconfig.option.hypothesis_seed).getrandbits(32)


@pytest.fixture(autouse=True)
def torch_seed() -> None:
    """The numbers that torch draws in a test are the same whatever ran before it in this process."""
    if torch := sys.modules.get("torch"):
        # For each kind of device that is not there torch.manual_seed keeps the whole stack, formatted: 1 ms.
        seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
        seed(1709_01507)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def frozen() -> Iterator[None]:
    """Dynamo asks Inductor's config whether to give it weights as attributes of the graph."""
    from torch._inductor import config

    with config.patch(freezing=True):
        yield
