"""Networks that lie in files and are spread over workers come to the same as in memory and one process."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import Budget, Plan, TenfoldError, _calibrate, _shards, _workers
from tenfold._plan import Step
from tenfold.methods import CP, SVD, FilterPruning, JointSVD, SpatialSVD, Tucker

NET, X = randomised(small_cnn()), images(2, 3, 16, 16)
METHODS = [SVD(), SpatialSVD(), Tucker(), CP()]


class Tied(nn.Module):
    """Blocks with an embedding that is the head, a buffer that state dicts leave out, and an LSTM."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(3))
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.register_buffer("places", torch.linspace(0, 1, 32), persistent=False)

    def forward(self, ids):
        x = self.embed(ids) + self.places
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.lstm(x)[0])


IDS = torch.arange(20).reshape(2, 10)


def ids():
    """For the command line."""
    return IDS


def tied():
    return randomised(Tied())


def written(folder, model, most=20_000):
    """The weights as the Hugging Face hub has them: several files and an index."""
    folder.mkdir()
    shards, seen = _shards.Shards(folder, most), {}
    for name, tensor in model.state_dict().items():
        if seen.setdefault(tensor.data_ptr(), name) == name:
            shards.add({name: tensor})
    shards.finish()
    return folder


def on_meta(build):
    """Parameters without values; buffers, which no file may hold, with theirs."""
    model = build()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to("meta"))
    if isinstance(model, Tied):
        model.head.weight = model.embed.weight
    return model


def test_weights_are_read_where_they_are_needed(tmp_path):
    net = tied()
    folder = written(tmp_path / "weights", net)
    index = json.loads((folder / _shards.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in net.parameters())
    for path in (folder, folder / _shards.INDEX):
        found = tenfold.with_weights(on_meta(Tied), path)
        assert torch.equal(found(IDS), net(IDS))
        assert found.head.weight is found.embed.weight
    whole = written(tmp_path / "one", net, most=10**9)
    assert [file.name for file in whole.iterdir()] == [_shards.WEIGHTS]
    assert torch.equal(tenfold.with_weights(net, whole / _shards.WEIGHTS)(IDS), net(IDS))
    with torch.no_grad():
        found.embed.weight.zero_()  # the files stay as they are
    assert torch.equal(tenfold.with_weights(on_meta(Tied), folder)(IDS), net(IDS))


def test_files_that_are_wrong_are_refused(tmp_path):
    folder = written(tmp_path / "weights", tied())
    files = sorted(folder.glob("model-*"))
    files[1].rename(folder / "elsewhere")
    with pytest.raises(TenfoldError, match=rf"there is no file .*{files[1].name}"):
        tenfold.with_weights(tied(), folder)
    files[1].write_bytes((folder / "elsewhere").read_bytes()[:100])
    with pytest.raises(TenfoldError, match="truncated or no safetensors file"):
        tenfold.with_weights(tied(), folder)
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(TenfoldError, match="is no index of safetensors files, or one lacks"):
        tenfold.with_weights(tied(), folder)
    for text in ("{", "[]", '{"weight_map": 3}'):
        (folder / _shards.INDEX).write_text(text)
        with pytest.raises(TenfoldError, match="is no index"):
            tenfold.with_weights(tied(), folder)
    with pytest.raises(TenfoldError, match="there is no file"):
        tenfold.with_weights(tied(), tmp_path / "nowhere")
    other = written(tmp_path / "other", small_cnn())
    with pytest.raises(TenfoldError, match=r"holds .*, which the planned network does not have"):
        tenfold.with_weights(tied(), other)


def plans(found):
    return [found.plan(Budget(params=0.8)), found.plan(Budget(params=0.55)), Plan()]


@pytest.mark.parametrize("most", [3_000, 10**9])
def test_layer_by_layer_into_files_is_what_apply_and_save_write(tmp_path, most):
    net = tied()
    lying = tenfold.with_weights(on_meta(Tied), written(tmp_path / "weights", net))
    for number, plan in enumerate(plans(tenfold.options(lying, example=IDS, methods=[SVD(), JointSVD()]))):
        folder, plain = tmp_path / f"small-{number}", tmp_path / f"plain-{number}"
        tenfold.apply_to(folder, lying, plan, shard_bytes=most)
        small = tenfold.apply(net, plan)
        tenfold.save(plain, small, plan)
        assert (len([*folder.glob("*.safetensors")]) > 1) == (most == 3_000)
        assert all(file.stat().st_size < most + 30_000 for file in folder.glob("*.safetensors"))
        for loaded in (tenfold.load(folder, net), tenfold.load(plain, net)):
            assert torch.equal(loaded(IDS), small(IDS))
            assert [*loaded.state_dict()] == [*small.state_dict()]
    assert torch.equal(lying(IDS), net(IDS))


def test_filters_data_and_plans_in_rounds_go_into_files_too(tmp_path):
    data = [images(16, 3, 16, 16, seed=seed) for seed in range(4)]
    told = tenfold.calibrate(NET, data)
    before = copy.deepcopy(NET.state_dict())
    first = tenfold.plan(NET, Budget(params=0.6), example=X, methods=[FilterPruning(), *METHODS], statistics=told)
    inner = Plan([Step(layers=(f"{first.steps[-1].layers[0]}.0",), method=SVD(), rank=(1,))])
    plan = Plan(first.steps + inner.steps)
    tenfold.apply_to(tmp_path / "small", NET, plan, told, shard_bytes=4_000)
    small = tenfold.apply(NET, plan, told)
    assert torch.equal(tenfold.load(tmp_path / "small", NET)(X), small(X))
    assert all(torch.equal(value, before[name]) for name, value in NET.state_dict().items())


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TenfoldError, match="holds other files"):
        tenfold.apply_to(tmp_path, NET, Plan())
    folder = tmp_path / "small"
    tenfold.apply_to(folder, NET, Plan(), shard_bytes=3_000)
    tenfold.save(folder, NET, Plan())  # over several files of an earlier save
    assert not [*folder.glob("model-*")]


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    settings = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
    ray.init("local", num_cpus=2, log_to_driver=False, **settings)
    yield ray
    ray.shutdown()


def outcome(model, **more):
    told = tenfold.calibrate(model, [images(4, 3, 16, 16, seed=seed) for seed in range(12)])
    found = tenfold.options(model, example=X, methods=METHODS, **more)
    plain = found.plan(Budget(params=0.5))
    fitted = tenfold.options(model, example=X, methods=METHODS, statistics=told, **more).plan(Budget(params=0.5))
    return plain, fitted, tenfold.apply(model, plain).state_dict(), tenfold.apply(model, fitted, told).state_dict()


def same(first, second):
    return [*first] == [*second] and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("keep", [False, True])
def test_workers_come_to_the_same_bit_for_bit(ray, tmp_path, keep):
    alone = outcome(NET)
    with tenfold.workers("auto"):
        if keep:
            with tenfold.resumable(tmp_path):
                together = outcome(NET)
                again = outcome(NET)
            assert [*tmp_path.glob("curve-*")]
            assert [*tmp_path.glob("factors-*")]
            assert again[0] == together[0]
        else:
            together = outcome(NET)
    assert together[:2] == alone[:2]
    assert same(together[2], alone[2])
    assert same(together[3], alone[3])
    assert ray.is_initialized()  # it was there before


def killing(folder, number):
    """A piece of work whose first worker is lost half-way."""
    place = folder / f"{number}"
    if number == 3 and not place.exists():
        place.write_text("once")
        os.kill(os.getpid(), signal.SIGKILL)
    return number, torch.get_num_threads()


def test_a_lost_worker_loses_no_work(ray, tmp_path):
    pieces = [(tmp_path, number) for number in range(8)]
    with tenfold.workers("auto"):
        found = [*_workers.each("pieces", killing, pieces)]
    assert found == [(number, torch.get_num_threads()) for number in range(8)]
    assert (tmp_path / "3").exists()


def failing(number):
    raise TenfoldError(f"no {number}")


def test_what_a_piece_says_is_heard(ray):
    with tenfold.workers("auto"), pytest.raises(TenfoldError, match="no 7"):
        [*_workers.each("pieces", failing, [(7,)])]


def test_workers_that_are_too_small_are_refused(ray, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    with tenfold.workers("auto"), pytest.raises(TenfoldError, match=r"has more than 2 processors; torch\.set_num"):
        [*_workers.each("pieces", killing, [(None, 0)])]


def test_no_cluster_is_refused():
    pytest.importorskip("ray")
    code = "import tenfold\nwith tenfold.workers('127.0.0.1:9'):\n    pass\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert 'TenfoldError: there is no Ray cluster at "127.0.0.1:9"' in done.stderr


def test_the_command_line_with_shards_and_workers(tmp_path):
    """Parameters are never made before they are read; the outcome is that of one process and one file."""
    pytest.importorskip("ray")
    here = str(Path(__file__).parent)
    (tmp_path / "mine.py").write_text(f"import sys\nsys.path.insert(0, {here!r})\nfrom test_scale import Tied, ids\n")
    written(tmp_path / "shards", tied())
    run = [sys.executable, "-c", "from tenfold._cli import main; main()"]
    command = [*run, "compress", "mine:Tied", "--example", "mine:ids", "--params", "60%", "--methods", "svd"]
    written(tmp_path / "one", tied(), most=10**9)
    for out, weights, more in (
        ("a", "shards", ()),
        ("b", "shards", ("--ray", "local")),
        ("c", "one/model.safetensors", ()),
    ):
        done = subprocess.run(
            [*command, "--weights", weights, "--out", out, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"Written to {out}: weights, plan.json, report.json." in done.stdout
        assert (tmp_path / out / "report.json").is_file()
    nets = [tenfold.load(tmp_path / out, Tied()) for out in "abc"]
    assert (tmp_path / "a" / "plan.json").read_text() == (tmp_path / "b" / "plan.json").read_text()
    assert all(torch.equal(net(IDS), nets[0](IDS)) for net in nets)


def test_statistics_in_rounds_are_those_of_one(monkeypatch):
    data = [images(8, 3, 16, 16, seed=seed) for seed in range(10)]
    whole = tenfold.calibrate(NET, data)
    before = torch.get_rng_state()
    monkeypatch.setattr(_calibrate, "_MEMORY", 2_000)
    read = []

    class Loader:
        def __iter__(self):
            read.append(torch.rand(()))  # loaders draw a seed
            return iter(data)

    parts = tenfold.calibrate(NET, Loader())
    assert len(read) > 3  # once to trace, and once a round
    assert torch.equal(torch.get_rng_state(), before)
    assert [*parts.layers] == [*whole.layers]
    assert all(torch.equal(a, b) for a, b in zip(parts.packed().values(), whole.packed().values(), strict=True))
    one, other = (
        tenfold.plan(NET, Budget(params=0.5), example=X, methods=METHODS, statistics=s) for s in (whole, parts)
    )
    assert one == other
    assert same(tenfold.apply(NET, one, whole).state_dict(), tenfold.apply(NET, other, parts).state_dict())


FSDP = """
import os, re, sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
import tenfold
from nets import images, randomised
from tenfold.methods import SVD

dist.init_process_group("gloo")
rank, folder, page = dist.get_rank(), sys.argv[1], open(sys.argv[2]).read()
blocks = re.findall(r"```python\\n(.*?)```", page.split("## FSDP")[1], re.DOTALL)
model = randomised(nn.Sequential(*(nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(3))))
plan = tenfold.plan(model, tenfold.Budget(params=0.6), example=images(1, 24), methods=[SVD()])
small = tenfold.apply(model, plan).train()
my_batches = [images(16, 24, seed=10 * rank + number) for number in range(9)]
exec(blocks[0])
statistics.save(f"{folder}/told-{rank}")
my_loader = [(batch, batch[:, :24].argmax(1)) for batch in my_batches]
exec(blocks[1])
state = get_model_state_dict(small, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    torch.save(state, f"{folder}/trained.pt")
dist.barrier()  # else one process may end while the other still talks to it
dist.destroy_process_group()
os._exit(0)  # all is written; a process was seen to abort outside of Python, perhaps as it ended
"""


def test_weights_that_are_spread_over_processes(tmp_path):
    """What the page shows: two processes come to what one does with all batches."""
    here = Path(__file__).parent
    (tmp_path / "run.py").write_text(FSDP)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    paths = os.pathsep.join([str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")])
    command = [*torchrun, str(tmp_path / "run.py"), str(tmp_path), str(here.parent / "docs" / "large-networks.md")]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    model = randomised(nn.Sequential(*(nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(3))))
    parts = [[images(16, 24, seed=10 * rank + number) for number in range(9)] for rank in range(2)]
    one, other = (tenfold.calibrate(model, part) for part in parts)
    for rank in range(2):
        told = tenfold.Statistics.load(tmp_path / f"told-{rank}")
        pairs = zip(told.packed().values(), (one + other).packed().values(), strict=True)
        assert all(torch.allclose(a.double(), b.double(), rtol=1e-12) for a, b in pairs)
    small = tenfold.apply(
        model, tenfold.plan(model, Budget(params=0.6), example=images(1, 24), methods=[SVD()])
    ).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    for pair in zip(*parts, strict=True):
        x = torch.cat(pair)
        nn.functional.cross_entropy(small(x), x.argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = torch.load(tmp_path / "trained.pt", weights_only=True)
    assert all(torch.allclose(trained[name], value, atol=1e-5) for name, value in small.state_dict().items())
