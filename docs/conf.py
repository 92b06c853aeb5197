"""The documentation site: `make docs` builds it in build/docs, from docs/*.md and, for the API, docstrings."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from senet_fast import __version__  # noqa: E402 - the checkout's

project = "senet_fast"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"senet_fast {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"  # what an Args section does not name needs no row
napoleon_use_rtype = False
default_role = "code"  # some docstrings have `names` in single backquotes
suppress_warnings = ["misc.highlighting_failure"]


def link_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Pages name each other as files of the checkout, `docs/ids.md`: here these become links."""
    up = "../" * name.count("/")

    def link(found: re.Match[str]) -> str:
        return f"[`docs/{found[1]}`]({up}{found[1]})"

    source[0] = re.sub(r"(?<!\[)`docs/([\w/-]+\.md)`", link, source[0])


ARGUMENT = re.compile(r"[a-z_]+(, [a-z_]+)*: ")  # at the start of a paragraph or behind another


def list_arguments(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """The arguments of ID classes stand in their docstrings without a heading: here they get one."""
    made: list[str] = []
    within = False
    for line in lines:
        begins = what == "class" and "Args:" not in lines and ARGUMENT.match(line) is not None
        if begins and not within:
            made.append("Args:")
        within = begins or (within and line.startswith("    "))
        made.append("    " * within + re.sub(r"(?<!`)\*\*(?=\w)", r"\\*\\*", line))
    lines[:] = made


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", list_arguments, priority=100)  # before napoleon reads the heading
