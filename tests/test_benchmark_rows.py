"""benchmarks/rows.py: which rows are taken, which of an earlier run stay, and that the tables say what the JSON has."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import needs
import pytest

needs.library("torch")

from benchmarks import rows  # noqa: E402

COMMANDS = {  # results: the module that renders them
    **{name: name for name in ("claim", "fusing", "memory", "norm", "onnx", "peers", "tax")},
    **{
        "se": "table",
        "gated": "se.gated",
        "activations": "se.activations",
        "ids": "ids.table",
        "ids_scaling": "ids.scaling",
        "ids_alternatives": "ids.alternatives",
    },
}


class Mode(NamedTuple):
    id: str


MODES = [Mode("resnet50 forward 1"), Mode("resnet50 step 8"), Mode("vgg forward 16")]


def options(*words: str) -> argparse.Namespace:
    return rows.command("some", "Some rows: `python -m benchmarks.some`.\n\nMore.", "resnet50", 2.0).parse_args(words)


def ids(modes: list[Mode]) -> list[str]:
    return [mode.id for mode in modes]


def test_selection(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.selected(options(), MODES) == MODES
    assert ids(rows.selected(options("-k", "1 resnet50"), MODES)) == ["resnet50 forward 1"]  # whole words, in any order
    assert ids(rows.selected(options("-k", "res* step"), MODES)) == ["resnet50 step 8"]
    with pytest.raises(SystemExit, match=r"^0$"):
        rows.selected(options("-k", "forward", "--list"), MODES)
    assert capsys.readouterr().out == "resnet50 forward 1\nvgg forward 16\n"
    with pytest.raises(SystemExit, match="no row has all of 'resnet'"):
        rows.selected(options("-k", "resnet"), MODES)


def test_rows_of_earlier_runs_stay_on_the_same_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.json"
    here = {
        **{"date": "1", "machine": {"cpu": "some", "threads": 2}},
        **{"versions": {"torch": "2"}, "build": {"isa": "avx"}},
    }

    def run(where: dict[str, Any], *words: str) -> list[tuple[str, str]]:
        monkeypatch.setattr(rows, "surroundings", lambda *packages: where)
        given = options("--results", str(tmp_path), *words)
        rows.run(given, MODES, lambda mode: {"seconds": {"a": 2e-3, "b": 1e-3}, "believable": True}, markdown)
        results = json.loads(path.read_text())
        assert results["date"] == where["date"]
        return [(row["mode"], row["date"]) for row in results["rows"]]

    def markdown(results: rows.Results) -> str:
        return rows.comparison(results["rows"], ("a", "b", "c"), [("a", "b"), ("b", "c")])

    assert run(here, "-k", "16") == [("vgg forward 16", "1")]
    assert run(here | {"date": "2"}, "-k", "resnet50 1") == [("resnet50 forward 1", "2"), ("vgg forward 16", "1")]
    text = path.with_suffix(".md").read_text()
    assert text.startswith("# Some rows: `python -m benchmarks.some`\n\n1 to 2, some, 2 threads, avx; torch 2.\n\n")
    assert "| vgg forward 16       | 2.00 | 1.00 |    - | 2.00 |   - |" in text
    assert capsys.readouterr().out.endswith(text + "\n")
    assert run(here | {"date": "3"}, "-k", "forward") == [("resnet50 forward 1", "3"), ("vgg forward 16", "3")]
    other = here | {"date": "4", "machine": {"cpu": "some", "threads": 1}}
    before = path.read_text()
    with pytest.raises(SystemExit, match="its 2 rows were taken with another machine; --results FOLDER"):
        run(other, "-k", "step")
    assert path.read_text() == before
    assert run(other, "-k", "step", "--replace") == [("resnet50 step 8", "4")]
    assert "its 2 rows were taken with another machine" in capsys.readouterr().out


def test_busy_rows_have_no_ratios() -> None:
    row = {"mode": "some", "date": "1", "seconds": {"a": 2e-6, "b": 1e-6}, "believable": False}
    text = rows.comparison([row], ("a", "b"), [("a", "b")], unit="us", more={"twice": lambda row: 2})
    assert [word.strip() for word in text.splitlines()[-1].split("|")[1:-1]] == ["some (busy)", "2.0", "1.0", "-", "2"]
    results = {"date": "1", "machine": {"cpu": "c", "threads": 1}, "versions": {}, "build": {"isa": "i"}, "rows": [row]}
    assert rows.BUSY in rows.head(results)


@pytest.mark.parametrize("name", COMMANDS)
def test_tables_are_those_of_their_rows(name: str, tmp_path: Path, root: Path) -> None:
    path = root / rows.RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip("was not taken yet")
    module = importlib.import_module(f"benchmarks.{COMMANDS[name]}")
    title = module.__doc__.partition("\n")[0].removesuffix(".")
    rows.write(tmp_path / path.name, json.loads(path.read_text()), title, module.markdown)
    assert (tmp_path / path.name).with_suffix(".md").read_text() == path.with_suffix(".md").read_text()
