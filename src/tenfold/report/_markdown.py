"""The same sections in short, as Markdown: of charts their summaries and tables."""

from collections.abc import Iterable

from tenfold.report._page import Chart, Code, Fact, Facts, Section, Table, Text

_ROWS = 40  # of a table; the page has all of them


def markdown(title: str, lead: str, sections: Iterable[Section]) -> str:
    """Headings, paragraphs and tables; a long table ends with how many rows are left out."""
    blocks = [f"# {_plain(title)}", _plain(lead)]
    for section in sections:
        blocks += [f"## {_plain(section.title)}", *(_block(part) for part in section.parts)]
    return "\n\n".join(blocks) + "\n"


def _block(part: Text | Facts | Chart | Table | Code) -> str:
    match part:
        case Facts(items):
            return "\n".join(map(_line, items))
        case Table():
            return _table(part)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Chart():
            return f"{_plain(part.summary)}\n\n{_table(part.table)}"
        case Text(text):
            return _plain(text)


def _line(fact: Fact) -> str:
    change = fact.after if fact.before is None else f"{fact.before} → {fact.after}"
    return f"- {_plain(fact.name)}: **{_plain(change)}**" + (f" ({_plain(fact.note)})" if fact.note else "")


def _table(table: Table) -> str:
    rows = [[column.shown(value) for column, value in zip(table.columns, row, strict=True)] for row in table.rows]
    lines = [
        _row(column.heading for column in table.columns),
        _row(("---:" if column.form else "---") for column in table.columns),
        *map(_row, rows[:_ROWS]),
    ]
    more = f"\n\nAnd {len(rows) - _ROWS:,} more." if len(rows) > _ROWS else ""
    return f"{_plain(table.caption)}\n\n" + "\n".join(lines) + more


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for special in "\\`*_<[|":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
