"""A page: one HTML file that asks nothing of the network, made of sections of text, facts, charts and tables.

The parts are plain data, so that the same sections give the page and its short form in Markdown.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tenfold._sources import imported
from tenfold._version import __version__

Value = str | int | float | None
_HERE = Path(__file__).parent
_NEEDS = "a report (pip install tenfold[report])"


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and for numbers how they are written, such as `",d"` or `".1%"`."""

    heading: str
    form: str | None = None  # None: text

    def shown(self, value: Value) -> str:
        """A value as it is read; nothing where there is none."""
        return "" if value is None else format(value, self.form) if self.form else str(value)


@dataclass(frozen=True)
class Table:
    """Rows of values, in the order of the columns; the first names the row. Sorted by its headings on the page."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    filters: bool = False  # whether a text field above leaves only the rows that hold its text


@dataclass(frozen=True)
class Chart:
    """A figure with what it shows in words, and its numbers, for those who cannot see it or want them."""

    kind: ClassVar[str] = "chart"
    figure: Mapping[str, Any]  # as plotly.js takes it: "data" and "layout", whose colours of text the page chooses
    summary: str
    table: Table
    folded: bool = True  # whether the table has to be opened first

    @property
    def json(self) -> str:
        """The figure as it may stand inside a script element."""
        return json.dumps(self.figure, allow_nan=False).replace("<", "\\u003c")

    @property
    def height(self) -> int:
        """Of the figure, in pixels."""
        return int(self.figure["layout"]["height"])


@dataclass(frozen=True)
class Fact:
    """A number in large type: before and after, and what more there is to say. Without a before, after alone."""

    name: str
    after: str
    before: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Numbers in large type, side by side."""

    kind: ClassVar[str] = "facts"
    items: Sequence[Fact]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """What is typed or copied, such as a command."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Text | Facts | Chart | Table | Code]

    @property
    def anchor(self) -> str:
        """What links to it name."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def check_installed() -> None:
    """Refuse to go on without what makes pages.

    Raises:
        TenfoldError: if plotly or jinja2 are not installed.
    """
    for library in ("jinja2", "plotly.offline"):
        imported(library, _NEEDS)


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """One self-contained HTML page: a heading, a sentence that says it all, and sections.

    All text is escaped. The page may run its own two scripts, known by their digests, and ask for nothing.

    Raises:
        TenfoldError: if plotly or jinja2 are not installed.
    """
    jinja2 = imported("jinja2", _NEEDS)
    sections = list(sections)
    has_charts = any(part.kind == "chart" for section in sections for part in section.parts)
    scripts = [_text("page.js")]
    if has_charts:
        scripts.insert(0, imported("plotly.offline", _NEEDS).get_plotlyjs())
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_text("page.html"))
    facts = {"title": title, "lead": lead, "sections": sections, "version": __version__}
    return template.render(**facts, style=_text("page.css"), scripts=scripts, policy=_policy(scripts)).lstrip()


def _policy(scripts: Sequence[str]) -> str:
    """Nothing may be fetched or sent, and no other script may run; styles are set by charts as they are drawn."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
