"""Threads are pinned: a many-threaded decomposition on a busy machine is many times slower."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmarks._zoo  # noqa: F401  declares the operators that torchvision and timm look for when imported
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
threads = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # a worker a core
torch.set_num_threads(threads)
os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that tests start


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and trained networks."""
    if not os.environ.get("TENFOLD_DATA"):
        pytest.skip("TENFOLD_DATA is not set: real images and trained networks are not at hand")
    return Path(os.environ["TENFOLD_DATA"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser that pages are looked at in."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: pages cannot be looked at")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages cannot be looked at")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()
