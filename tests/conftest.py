"""Threads are pinned: a many-threaded decomposition on a busy machine is many times slower."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # two workers on two cores

# The registry's torchvision does not find its compiled operators beside another build of torch. Its models need
# only the schemas, and timm needs torchvision.
_schemas = torch.library.Library("torchvision", "DEF")
_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and trained networks."""
    if not os.environ.get("TENFOLD_DATA"):
        pytest.skip("TENFOLD_DATA is not set: real images and trained networks are not at hand")
    return Path(os.environ["TENFOLD_DATA"])
