"""Forty small networks of three libraries, each taken through every stage; the whole matrix is a benchmark."""

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

from benchmarks import _zoo
from benchmarks.architectures import MIX, Job, row

NAMES = [(library, name) for library in _zoo.LIBRARIES for name in _zoo.entries(library, small=True)]


@pytest.mark.parametrize(("library", "name"), NAMES)
def test_every_stage(library, name):
    """Build, options, plan, apply, forward, backward, save, load and both exports."""
    made = row(Job(library, name, small=True, methods=MIX))
    assert made.green, made.line()
    assert made.difference <= 1e-4
    assert 0.49 <= made.ratio <= 0.5


def test_there_are_forty():
    assert len(NAMES) == 40
