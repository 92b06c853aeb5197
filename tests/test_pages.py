"""The Markdown pages: links lead to files, benchmarks/README.md stays short, and names every command."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "docs/design", "benchmarks")
    for path in (ROOT / folder).glob("*.md")
)
LONGEST = 120  # lines of benchmarks/README.md


def in_words(text: str) -> set[str]:
    """Paths of files of this project that a page names in backquotes."""
    named = re.findall(r"`((?:docs|benchmarks|tests|tools|csrc|senet_fast|examples)/[\w/.-]+)`", text)
    return {name for name in named if "DATE" not in name}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_names_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = {link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link}
    assert not {link for link in links if not ((ROOT / page).parent / link).exists()}
    assert not {name for name in in_words(text) if not (ROOT / name).exists()}


def test_every_benchmark_is_named() -> None:
    text = (ROOT / "benchmarks/README.md").read_text()
    assert len(text.splitlines()) <= LONGEST
    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in (ROOT / "benchmarks").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert len(commands) > 10
    assert set(re.findall(r"^\| `python -m (benchmarks[\w.]*)`", text, re.MULTILINE)) == commands
    tables = {path.name for path in (ROOT / "benchmarks/results").glob("*.md") if not path.name.startswith("gpu-")}
    assert tables == {Path(link).name for link in re.findall(r"\]\((results/[^)]+)\)", text)}
