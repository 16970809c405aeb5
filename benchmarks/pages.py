"""Every page and picture that rows make, written anew: `python -m benchmarks.pages`, without data or GPU."""

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks._rows import DOCS

BENCHMARKS = (
    "oneshot",
    "finetuning",
    "max_drop",
    "weighing",
    "latency",
    "sentences",
    "scale",
    "decompositions",
    "architectures",
    "peers.__main__",
    "seeds.tensor_train",
    "seeds.methods",
    "seeds.structure",
    "seeds.joint",
    "_results_page",
)


def write(name: str, docs: Path) -> None:
    """Write the page of one benchmark, and its pictures."""
    import_module(f"benchmarks.{name}").write_page(docs)


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=str(__doc__).splitlines()[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder to write to")
    asked = parser.parse_args()
    for name in BENCHMARKS:
        write(name, asked.docs)


if __name__ == "__main__":
    main()
