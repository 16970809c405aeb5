"""The pages of the documentation, in blocks, and somebody who reads a page and runs every block of it."""

import fnmatch
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tenfold._cli import main

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```([a-z]*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)

# Blocks and commands that no test of the pages runs, by page and first line, and why.
NOT_RUN = {
    ("*", "python -m benchmarks.*"): "hours of work; that the command exists is checked",
    ("*", "pip install *"): "this installation is what runs the tests; that the extras exist is checked",
    ("README.md", "python3 -m venv .venv"): "as pip install",
    ("README.md", ". .venv/bin/activate"): "as pip install",
    ("README.md", "make *"): "make test runs this test, tests/test_cli.py the demo",
    ("README.md", "python -c *"): "downloads trained weights; random ones lie there instead",
    ("README.md", 'with tenfold.workers("auto"):*'): "needs a Ray cluster; tests/test_scale.py has one of its own",
    ("docs/large-networks.md", "from torch.distributed.fsdp*"): "tests/test_scale.py runs it in two processes",
    ("docs/large-networks.md", "for block in small:"): "tests/test_scale.py runs it in two processes",
    ("docs/trained-small.md", "*"): "tests/test_docs.py runs each block in every way that it serves",
}


@dataclass(frozen=True)
class Block:
    """What stands between two fences, or one command of it."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    def reason(self) -> tuple[str, str] | None:
        """The entry of `NOT_RUN` that stands for it."""
        first = self.text.strip().splitlines()[0] if self.language == "python" else self.text
        matches = (
            key for key in NOT_RUN if fnmatch.fnmatchcase(self.page, key[0]) and fnmatch.fnmatchcase(first, key[1])
        )
        return next(matches, None)


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order; those of commands are split into these."""
    text, found = (ROOT / page).read_text(), []
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        parts = commands(match[3]) if match[1] == "sh" else [match[3]]
        found += [Block(page, line, match[1], match[2], part) for part in parts]
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block, one a line, with what was continued joined and comments dropped."""
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s)#.*", "", line).strip())]


class Reader:
    """Runs blocks in the current folder, in one namespace, as a person would type them."""

    def __init__(self, names: dict) -> None:
        self.names = names

    def run(self, block: Block) -> None:
        if block.title:
            Path(block.title).write_text(block.text)
            sys.modules.pop(Path(block.title).stem, None)
        elif block.language == "python":
            code = compile("\n" * block.line + block.text, block.page, "exec")
            exec(code, self.names)
        elif block.language == "sh":
            self._type(block.text)

    def _type(self, command: str) -> None:
        program, *arguments = shlex.split(command)
        if program == "tenfold":
            sys.argv = [program, *arguments]
            with pytest.raises(SystemExit) as done:
                main()
            assert not done.value.code, f"{command}: {done.value.code}"
        elif program == "python" and arguments[0].endswith((".py", ".pyz")):
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            raise AssertionError(f"no test knows how to run: {command}")
