"""Damaged files: 10,000 of them, each read or refused in one line, never with another exception."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import images, randomised, small_cnn
from safetensors.torch import save_file
from test_soft_pruning import Blocks

import tenfold
from tenfold import Budget, Plan, TenfoldError
from tenfold._apply import skeleton
from tenfold._run import on_meta
from tenfold._shards import mapped
from tenfold._store import load_report, read_weights
from tenfold._times import Profile
from tenfold.methods import CP, SVD, FilterPruning, JointSVD, TensorTrain, Tucker
from tenfold.train._setting import Setting

VALUES = [None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x", "\x00\n", "svd", "0", [], [[]], [10**12]]

PROFILE = tenfold.Profile(
    tenfold="1",
    conditions={"engine": "onnxruntime", "device": "somewhere", "threads": 1, "versions": ("onnxruntime 1",)},
    times={"a": 1.0, "b": 2.0},
    whole_ms=3.0,
).model_dump_json()
SETTING = """
model = "nets:make_net"
weights = "w.pt"
input = "1,3,32,32"
data = "parquet:train/*.parquet"
augment = { shift = 4, flip = true, cutout = 8 }

[[rounds]]
params = 0.7
recipe = { epochs = 2, lr = 0.001 }

[[rounds]]
params = 0.5
recipe = { epochs = 5, lr = 0.001, ema = 0.99 }
"""


def test_every_damaged_plan_is_read_or_refused():
    dense = {"cnn": randomised(small_cnn()), "blocks": randomised(Blocks(8))}
    inputs = {"cnn": images(1, 3, 16, 16), "blocks": images(1, 3, 8, 8)}
    plans = [
        (net, tenfold.plan(dense[net], Budget(params=0.7), example=inputs[net], methods=methods))
        for net, methods in (
            ("cnn", [SVD(), Tucker(), CP(), CP(4), TensorTrain()]),
            ("cnn", [FilterPruning(), SVD()]),
            ("blocks", [JointSVD(), JointSVD("both"), SVD()]),
        )
    ]
    meta = {net: on_meta(model) for net, model in dense.items()}
    draw, through = random.Random(0), 0
    for number in range(6000):
        net, plan = plans[number % len(plans)]
        text = plan.model_copy(update={"fingerprint": plan.fingerprint if draw.random() < 0.2 else None}).dumps()
        damaged = torn(draw, text.encode()) if draw.random() < 0.3 else edited(draw, text)
        through += read_or_refused(lambda damaged=damaged, net=net: skeleton(meta[net], Plan.loads(damaged)))
    assert through > 100  # not all are refused at the first look


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.pt", "model.safetensors.index.json"])
def test_every_damaged_file_of_weights_is_read_or_refused(tmp_path, kind):
    state = randomised(small_cnn()).state_dict()
    path, draw = tmp_path / kind, random.Random(1)
    if kind.endswith(".pt"):
        torch.save(state, path)
    elif kind.endswith(".json"):
        save_file(state, tmp_path / "one.safetensors")
        path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "one.safetensors")}))
    else:
        save_file(state, path)
    data, read = path.read_bytes(), mapped if kind.endswith(".json") else read_weights
    assert read_or_refused(lambda: read(path))
    for _ in range(800):
        heads = 600 if draw.random() < 0.7 else len(data)  # where names, shapes and places stand
        path.write_bytes(edited(draw, data) if kind.endswith(".json") else torn(draw, data, heads))
        read_or_refused(lambda: read(path))


@pytest.mark.parametrize("kind", ["report", "profile"])
def test_every_damaged_record_is_read_or_refused(tmp_path, kind):
    net, inputs = randomised(small_cnn()), images(1, 3, 16, 16)
    result = tenfold.compress(net, Budget(params=0.7), example=inputs, methods=[SVD()])
    result.save(tmp_path / "small")
    draw = random.Random(2)
    if kind == "report":
        path, read = tmp_path / "small" / "report.json", lambda: load_report(tmp_path / "small")
    else:
        path, read = tmp_path / "times.json", lambda: Profile.load(tmp_path / "times.json")
        path.write_text(PROFILE)
    data = path.read_bytes()
    assert read_or_refused(read)
    for _ in range(500):
        path.write_bytes(torn(draw, data) if draw.random() < 0.5 else edited(draw, data))
        read_or_refused(read)


def test_every_damaged_setting_is_read_or_refused(tmp_path):
    path, draw = tmp_path / "setting.toml", random.Random(3)
    path.write_text(SETTING)
    data = path.read_bytes()
    assert read_or_refused(lambda: Setting.read(path))
    for _ in range(600):
        path.write_bytes(torn(draw, data))
        read_or_refused(lambda: Setting.read(path))


def read_or_refused(read: Callable[[], Any]) -> bool:
    """Whether it was read; what is refused is refused in one line."""
    try:
        read()
    except TenfoldError as error:
        refused = str(error)
    else:
        return True
    assert "\n" not in refused, repr(refused)
    return False


def torn(draw: random.Random, data: bytes, within: int | None = None) -> bytes:
    """Bytes with a few of them changed, lost or doubled, or cut off."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place, how = draw.randrange(min(within or len(found), len(found)) or 1), draw.random()
        if how < 0.4 and found:
            found[place] = draw.randrange(256)
        elif how < 0.6:
            del found[place : place + draw.randint(1, 20)]
        elif how < 0.9:
            found[place:place] = found[max(0, place - draw.randint(1, 30)) : place]
        else:
            del found[place:]
    return bytes(found)


def edited(draw: random.Random, text: str | bytes) -> bytes:
    """JSON in which one or two values are others, are lost or stand twice."""
    data = json.loads(text)
    for _ in range(draw.randint(1, 2)):
        holder, key = draw.choice([*places(data)])
        how = draw.random()
        if how < 0.7:
            holder[key] = json.loads(json.dumps(draw.choice(VALUES)))
        elif how < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])))
        else:
            holder["another"] = json.loads(json.dumps(holder[key]))
        if not data:
            break
    return json.dumps(data).encode()


def places(data: Any) -> Any:
    """Every value inside, as what holds it and its key or index."""
    for key, value in [*(data.items() if isinstance(data, dict) else enumerate(data))]:
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)
