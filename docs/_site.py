"""What the site needs of MkDocs: blocks of the language `layers` are drawn, comments of fields are their docs."""

# A line is one row of the picture: `title: I --3x3--> R --1x1--> O`, channels and the layers between them. What is
# thin has a capital R or L for a name; a layer with a star is shared by several rows.

import re
from html import escape
from typing import Any

import griffe

BLOCK = re.compile(r"^```layers\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TIMES = "\N{MULTIPLICATION SIGN}"
WIDE, THIN, BETWEEN, ROW, LEFT = 64, 30, 118, 100, 112


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return BLOCK.sub(lambda block: drawn(block[1]), markdown)


def drawn(text: str) -> str:
    """The picture of one block, as inline SVG in the colours of the page."""
    rows = [_row(line, 42 + ROW * number) for number, line in enumerate(text.splitlines())]
    width = max(end for _, end in rows)
    shapes = "".join(shape for shape, _ in rows)
    label = escape("; ".join(text.splitlines()), quote=True)
    size = f'viewBox="0 0 {width} {ROW * len(rows)}" style="max-width:{width}px"'
    return f'<figure class="layers"><svg {size} role="img" aria-label="{label}">{shapes}</svg></figure>'


def _row(line: str, middle: int) -> tuple[str, int]:
    title, parts = line.split(": ", 1)
    names = re.split(r" --.+?--> ", parts)
    layers = re.findall(r" --(.+?)--> ", parts)
    if len(layers) == 0 or len(names) != len(layers) + 1:
        raise ValueError(f"no row of layers: {line}")
    shapes = [_text(0, middle + 4, title, "title")]
    for number, name in enumerate(names):
        x, half = LEFT + BETWEEN * number, _half(name)
        shapes.append(f'<rect x="{x - 3}" y="{middle - half}" width="6" height="{2 * half}" rx="2" class="channels"/>')
        shapes.append(_text(x, middle + WIDE / 2 + 15, name, "name"))
    for number, layer in enumerate(layers):
        left, right = LEFT + BETWEEN * number + 7, LEFT + BETWEEN * (number + 1) - 7
        a, b = _half(names[number]), _half(names[number + 1])
        corners = f"{left},{middle - a} {right},{middle - b} {right},{middle + b} {left},{middle + a}"
        shared = " shared" if layer.endswith("*") else ""
        shapes.append(f'<polygon points="{corners}" class="layer{shared}"/>')
        lines = layer.rstrip("*").split(", ")
        for place, part in enumerate(lines):
            y = middle + 4 + 13 * (place - (len(lines) - 1) / 2)
            shapes.append(_text((left + right) / 2, y, part.replace("x", TIMES), "kernel"))
    return "".join(shapes), LEFT + BETWEEN * len(layers) + 60


def _half(name: str) -> float:
    """Half of the height at which channels are drawn."""
    return (THIN if re.match(r"[RLr]", name) else WIDE * 0.6 if name.startswith("fewer") else WIDE) / 2


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


class Comments(griffe.Extension):
    """The comment behind a field of a class says what it is."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe for each attribute that it finds."""
        if attr.docstring or not isinstance(attr.parent, griffe.Class) or not attr.lineno:
            return
        _, mark, comment = attr.lines_collection[attr.filepath][attr.lineno - 1].partition("  # ")
        if mark and not comment.startswith(("type:", "noqa")):
            attr.docstring = griffe.Docstring(comment[0].upper() + comment[1:] + ".", parent=attr)
