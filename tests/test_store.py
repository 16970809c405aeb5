"""Saved folders: bit for bit in a fresh process, whole or not at all, never unpickled."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import TokenNet, images, randomised, small_cnn
from safetensors.torch import load_file, save_file
from torch import nn

import tenfold
from tenfold import Budget, TenfoldError
from tenfold._store import read_weights

FRESH = """
import sys, torch, tenfold
sys.path.insert(0, {tests!r})
torch.set_num_threads({threads})
import nets
with torch.device({device!r}):
    dense = {make}
small = tenfold.load({folder!r}, dense if {given} else None)
inputs = torch.load({inputs!r}, weights_only=True)
out = small(**inputs) if isinstance(inputs, dict) else small(inputs)
torch.save(out, {outputs!r})
"""

MODELS = {
    "nets.small_cnn()": (small_cnn, images(2, 3, 16, 16)),
    "nets.TokenNet()": (TokenNet, {"input_ids": torch.arange(10).reshape(2, 5)}),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("make", MODELS)
def test_loading_in_a_fresh_process_gives_equal_bits(tmp_path, make, device):
    build, inputs = MODELS[make]
    result = tenfold.compress(randomised(build()), Budget(params=0.6), example=inputs)
    result.save(tmp_path / "small")
    torch.save(inputs, tmp_path / "in.pt")
    script = FRESH.format(
        tests=str(Path(__file__).parent),
        device=device,
        threads=torch.get_num_threads(),
        make=make,
        given=True,
        folder=str(tmp_path / "small"),
        inputs=str(tmp_path / "in.pt"),
        outputs=str(tmp_path / "out.pt"),
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)
    expected = result.model(**inputs) if isinstance(inputs, dict) else result.model(inputs)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    pairs = [(expected, found)] if not isinstance(expected, dict) else [(expected[k], found[k]) for k in expected]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_folder_with_a_reference_loads_by_itself(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    plan = tenfold.plan(model, Budget(params=0.5), example=x).model_copy(update={"reference": "nets:small_cnn"})
    small = tenfold.apply(model, plan)
    tenfold.save(tmp_path / "small", small, plan)
    before = torch.get_rng_state()
    assert torch.equal(tenfold.load(tmp_path / "small")(x), small(x))
    assert torch.equal(before, torch.get_rng_state())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    ids = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    result = tenfold.compress(randomised(TokenNet()), Budget(params=0.8), example=ids)
    result.save(tmp_path / "small")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert len({"embed.weight", "head.weight"} & stored.keys()) == 1
    loaded = tenfold.load(tmp_path / "small", TokenNet())
    assert loaded.head.weight is loaded.embed.weight
    assert sum(t.numel() * t.element_size() for t in stored.values()) == result.report.small.bytes


def test_loaded_weights_are_aligned_as_those_that_were_saved(tmp_path):
    """Depthwise and pointwise kernels are chosen by alignment, and then round differently."""
    model, x = randomised(small_cnn()), images(1, 3, 16, 16)
    tenfold.compress(model, Budget(params=0.5), example=x).save(tmp_path / "small")
    assert all(p.data_ptr() % 64 == 0 for p in tenfold.load(tmp_path / "small", model).parameters())


def test_the_saved_file_is_smaller_by_as_much_as_promised(tmp_path):
    model, x = randomised(nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))), images(1, 512)
    tenfold.save(tmp_path / "dense", model, tenfold.Plan())
    tenfold.compress(model, Budget(bytes=0.25), example=x).save(tmp_path / "small")
    dense, small = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "small"))
    assert small <= 0.251 * dense


def test_an_earlier_save_is_replaced_and_anything_else_is_not(tmp_path):
    model, x = randomised(small_cnn()), images(1, 3, 16, 16)
    for share in (0.5, 0.4):
        tenfold.compress(model, Budget(params=share), example=x).save(tmp_path / "small")
    assert tenfold.load(tmp_path / "small", model)
    assert sorted(p.name for p in (tmp_path).iterdir()) == ["small"]
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(TenfoldError, match=r"notes\.txt"):
        tenfold.save(tmp_path / "small", model, tenfold.Plan())
    assert (tmp_path / "small" / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("tenfold._shards.save_file", full)
    with pytest.raises(OSError, match="no space"):
        tenfold.save(tmp_path / "small", small_cnn(), tenfold.Plan())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    model, x = randomised(small_cnn()), images(1, 3, 16, 16)
    tenfold.compress(model, Budget(params=0.5), example=x).save(tmp_path / "small")
    return tmp_path / "small"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: truncate(f / "plan.json"), "truncated"),
        (lambda f: truncate(f / "model.safetensors"), "truncated"),
        (lambda f: (f / "plan.json").unlink(), "there is no file"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no file"),
        (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1})), "no safetensors"),
        (
            lambda f: (f / "plan.json").write_text((f / "plan.json").read_text().replace('"rank": [', '"rank": [9')),
            "rank",
        ),
        (lambda f: (f / "plan.json").write_text(tenfold.Plan().dumps()), "does not have"),
    ],
)
def test_damaged_folders_are_refused_in_one_sentence(folder, damage, says):
    damage(folder)
    with pytest.raises(TenfoldError, match=says) as refused:
        tenfold.load(folder, small_cnn())
    assert "\n" not in str(refused.value)


def test_a_folder_for_another_network_is_refused(folder):
    with pytest.raises(TenfoldError, match="another network"):
        tenfold.load(folder, TokenNet())
    with pytest.raises(TenfoldError, match="how to build"):
        tenfold.load(folder)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/tenfold_was_here",))


def test_weights_that_hold_code_are_refused_and_not_run(tmp_path):
    trap = Path("/tmp/tenfold_was_here")
    trap.unlink(missing_ok=True)
    torch.save({"weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(TenfoldError, match="plain weights"):
        read_weights(tmp_path / "w.pt")
    assert not trap.exists()


def test_checkpoints_are_read_as_people_write_them(tmp_path):
    state = small_cnn().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == state.keys()
    compiled = {name: tensor.contiguous() for name, tensor in torch.compile(small_cnn()).state_dict().items()}
    assert all("_orig_mod" in name for name in compiled)
    save_file(compiled, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == state.keys()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TenfoldError, match="no state dict"):
        read_weights(tmp_path / "list.pt")


def test_the_report_is_readable_json(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["small"]["params"] <= 0.5 * report["dense"]["params"]
    assert report["drift"]["relative"] > 0
    assert set(report["left_dense"]) | {row["layer"] for row in report["replaced"]} == {"0", "3", "5", "9", "11"}


UTF_8 = """
import warnings, torch, tenfold
warnings.filterwarnings("error", category=EncodingWarning, module="tenfold")
net = torch.nn.Sequential()
net.add_module("größe", torch.nn.Linear(64, 64))
result = tenfold.compress(net, tenfold.Budget(params=0.7), example=torch.ones(1, 64))
result.save("small")
small = tenfold.load("small", net)
assert torch.equal(small(torch.ones(1, 64)), result.model(torch.ones(1, 64)))
assert [step.layers for step in result.plan.steps] == [("größe",)]
"""


def test_names_are_utf_8_whatever_the_system_writes(tmp_path):
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    script = tmp_path / "names.py"
    script.write_text(UTF_8, encoding="utf-8")
    command = [sys.executable, "-X", "warn_default_encoding", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_extra_state_is_refused(tmp_path):
    class Counts(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    model = nn.Sequential(nn.Linear(30, 30), Counts(30, 4))
    plan = tenfold.plan(model, Budget(params=0.8), example=images(1, 30))
    for save in (
        lambda: tenfold.save(tmp_path / "saved", tenfold.apply(model, plan), plan),
        lambda: tenfold.apply_to(tmp_path / "saved", model, plan),
    ):
        with pytest.raises(TenfoldError, match=r"1 \(Counts\) holds extra state"):
            save()
    assert not (tmp_path / "saved").exists()
