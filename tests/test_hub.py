"""The hub's mixin, on a local folder."""

import pytest
import torch
from nets import images, randomised, small_cnn

import tenfold
from tenfold import Budget

hub = pytest.importorskip("tenfold.hub", reason="huggingface_hub is not installed")


def test_a_result_goes_to_a_repository_and_back(tmp_path):
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    result = tenfold.compress(model, Budget(params=0.6), example=x)
    ours = hub.Compressed(result.model, result.plan, result.report)
    for _ in range(2):  # also over an earlier one
        ours.save_pretrained(tmp_path / "repository")
    found = sorted(path.name for path in (tmp_path / "repository").iterdir())
    assert found == ["README.md", "model.safetensors", "plan.json", "report.json"]
    back = hub.Compressed.from_pretrained(tmp_path / "repository", dense=small_cnn())
    assert torch.equal(back.model(x), result.model(x))
    assert (back.plan, back.report) == (result.plan, result.report)


def test_a_repository_without_a_dense_model_is_loaded_from_its_pt2(tmp_path):
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    result = tenfold.compress(model, Budget(params=0.6), example=x)
    hub.Compressed(result.model, result.plan, None).save_pretrained(tmp_path / "repository")
    tenfold.export(result.model, x, tmp_path / "repository" / "model.pt2")
    back = hub.Compressed.from_pretrained(tmp_path / "repository")
    assert back.report is None
    assert torch.allclose(back.model(x), result.model(x), atol=1e-5)
