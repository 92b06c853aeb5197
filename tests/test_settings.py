"""docs/settings.md beside what the sources read: every variable is on the page, and nothing else is."""

import re
from pathlib import Path

import pytest

OWN = re.compile(r"SENET_FAST_[A-Z_]*[A-Z]")
READ_IN_CPP = re.compile(r'getenv\("(\w+)"\)')
READ_IN_PYTHON = re.compile(r'os\.environ(?:\.get\(|\.setdefault\(|\[)"(\w+)"')
MACRO = re.compile(r'(?:define_macros\.append\(\(\s*"|#\s*define )(\w+)')
NOT_OURS = {"PATH"}


def texts(root: Path, *patterns: str) -> dict[str, str]:
    """Text by path, of files that a build does not make."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    generated = {path for path in found if path.suffix == ".cpp" and path.with_suffix(".pyx").exists()}
    return {str(path.relative_to(root)): path.read_text() for path in sorted(found - generated)}


def read_by_sources(root: Path) -> set[str]:
    compiled = texts(root, "csrc/**/*.*", "senet_fast/**/*.p[yx][xi]")
    python = texts(root, "setup.py", "tools/*.py", "senet_fast/**/*.py", "benchmarks/**/*.py", "Makefile", ".ci/run")
    found = {name for text in compiled.values() for name in READ_IN_CPP.findall(text)}
    for text in python.values():
        found |= set(OWN.findall(text))
        found -= set(MACRO.findall(text))
    for name in ("setup.py", *(path for path in python if path.startswith("tools/"))):
        found |= set(READ_IN_PYTHON.findall(python[name]))
    settings = re.search(r"^BUILD_SETTINGS = (\(.*?^\))", python["tools/bootstrap.py"], re.MULTILINE | re.DOTALL)
    assert settings
    return (found | set(re.findall(r'"(\w+)"', settings.group(1)))) - NOT_OURS


def rows(root: Path) -> list[list[str]]:
    lines = (root / "docs/settings.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]
    assert all(len(row) == 5 for row in cells), [row[0] for row in cells if len(row) != 5]
    return cells


def test_the_page_has_every_setting_and_no_other(root: Path) -> None:
    listed = [name for row in rows(root) for name in re.findall(r"`(\w+)`", row[0])]
    assert len(listed) == len(set(listed))
    assert set(listed) == read_by_sources(root)


def test_who_reads_a_setting_is_said(root: Path) -> None:
    for name, _, _, readers, when in rows(root):
        assert when
        for path in re.findall(r"`([\w/.]+/[\w/.]+|setup\.py)`", readers):
            names = re.findall(r"`(\w+)`", name)
            assert any(one in (root / path).read_text() for one in names), (name, path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('std::getenv("SENET_FAST_NEW")', {"SENET_FAST_NEW"}),
        ("#if defined(SENET_FAST_NEW)", set()),  # a macro
    ],
)
def test_a_new_one_would_be_seen(root: Path, tmp_path: Path, text: str, found: set[str]) -> None:
    for name in ("setup.py", "tools/bootstrap.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((root / name).read_text())
    before = read_by_sources(tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/new.cpp").write_text(text)
    assert read_by_sources(tmp_path) - before == found
