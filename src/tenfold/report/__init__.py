"""A self-contained HTML page about a compressed network, and its short form. Needs `pip install tenfold[report]`.

All that it says is in `plan.json` and `report.json`: no network is loaded or run for it.
"""

from pathlib import Path

from tenfold._plan import Plan
from tenfold._resume import write_text
from tenfold._store import PAGE, PLAN, SHORT, load_plan, load_report
from tenfold._verify import Report
from tenfold.report._markdown import markdown as _markdown
from tenfold.report._page import check_installed
from tenfold.report._page import page as _page
from tenfold.report._sections import lead, sections

__all__ = ["check_installed", "html", "markdown", "write"]


def html(folder: str | Path) -> str:
    """The page about what `tenfold.save`, `tenfold compress`, `train` or `demo` wrote: one file, no network.

    Raises:
        TenfoldError: if a file is missing or damaged, or plotly or jinja2 are not installed.
    """
    plan, report = _read(folder)
    return _page(_title(plan), lead(plan, report), sections(plan, report))


def markdown(folder: str | Path) -> str:
    """The same in short, as Markdown: of charts their summaries and tables; long tables are cut.

    Raises:
        TenfoldError: if a file is missing or damaged.
    """
    plan, report = _read(folder)
    return _markdown(_title(plan), lead(plan, report), sections(plan, report))


def write(folder: str | Path, page: str | Path | None = None) -> Path:
    """Write `report.html` and `report.md` into the folder, or the page alone to where `page` says; return its path.

    Raises:
        TenfoldError: as `html` does.
    """
    path = Path(folder) / PAGE if page is None else Path(page)
    write_text(path, html(folder))
    if page is None:
        write_text(Path(folder) / SHORT, markdown(folder))
    return path


def _read(folder: str | Path) -> tuple[Plan, Report]:
    return load_plan(Path(folder) / PLAN), load_report(folder)


def _title(plan: Plan) -> str:
    return f"{plan.reference}, made smaller" if plan.reference else "A network, made smaller"
