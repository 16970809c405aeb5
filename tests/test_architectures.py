"""Forty small networks of three libraries, each taken through every stage; the whole matrix is a benchmark."""

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

from benchmarks import _zoo
from benchmarks.architectures import MIX, QUICK, Job, row

NAMES = [(library, name) for library in _zoo.LIBRARIES for name in _zoo.entries(library, small=True)]
# All methods on every fifth: the rest of their rows is made by the benchmark, in three times as long.
JOBS = [(*name, QUICK if index % 5 else MIX) for index, name in enumerate(NAMES)]


@pytest.mark.parametrize(("library", "name", "methods"), JOBS)
def test_every_stage(library, name, methods):
    """Build, options, plan, apply, forward, backward, save, load and both exports."""
    made = row(Job(library, name, small=True, methods=methods))
    assert made.green, made.line()
    assert made.difference <= 1e-4
    assert 0.49 <= made.ratio <= 0.5


def test_there_are_forty():
    assert len(NAMES) == 40
