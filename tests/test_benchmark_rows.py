"""benchmarks/rows.py: which rows are taken, and which of an earlier run stay."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.rows import row_options, selected, take


class Mode(NamedTuple):
    id: str


MODES = [Mode("resnet50 forward 1"), Mode("resnet50 step 8"), Mode("vgg forward 16")]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    row_options(parser, "some", "resnet50")
    return parser.parse_args(words)


def ids(modes: list[Mode]) -> list[str]:
    return [mode.id for mode in modes]


def test_selection(capsys: pytest.CaptureFixture[str]) -> None:
    assert selected(options(), MODES) == MODES
    assert ids(selected(options("-k", "1 resnet50"), MODES)) == ["resnet50 forward 1"]  # whole words, in any order
    with pytest.raises(SystemExit, match=r"^0$"):
        selected(options("-k", "forward", "--list"), MODES)
    assert capsys.readouterr().out == "resnet50 forward 1\nvgg forward 16\n"
    with pytest.raises(SystemExit, match="no mode has all of resnet"):
        selected(options("-k", "resnet"), MODES)


def test_rows_of_earlier_runs_stay_on_the_same_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.json"
    here = {"date": "1", "machine": {"threads": 2}, "versions": {"torch": "2"}}

    def run(where: dict[str, Any], *words: str) -> list[tuple[str, str]]:
        given = options("--json", str(path), *words)
        results = take(given, MODES, selected(given, MODES), where, lambda mode: {"date": where["date"]})
        assert json.loads(path.read_text()) == results
        assert results["date"] == where["date"]
        return [(row["mode"], row["date"]) for row in results["rows"]]

    assert run(here, "-k", "16") == [("vgg forward 16", "1")]
    later = here | {"date": "2"}
    assert run(later, "-k", "resnet50 1") == [("resnet50 forward 1", "2"), ("vgg forward 16", "1")]
    assert run(here | {"date": "3"}, "-k", "forward") == [("resnet50 forward 1", "3"), ("vgg forward 16", "3")]
    assert "rows go" not in capsys.readouterr().out
    other = {"date": "4", "machine": {"threads": 1}, "versions": {"torch": "2"}}
    assert run(other, "-k", "step") == [("resnet50 step 8", "4")]
    assert "its 2 rows go, taken with another machine" in capsys.readouterr().out
