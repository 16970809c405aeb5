"""The command line as a person uses it: in a folder of their own, at 80 columns."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tenfold
from tenfold import TenfoldError
from tenfold._arguments import amount
from tenfold._cli import app, main

NETS = """
from pathlib import Path

import torch
from torch import nn


def make_net():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(50, 16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, input_ids, attention_mask=None):
        return self.down(self.up(self.embed(input_ids)))


def example():
    return torch.zeros(1, 3, 16, 16)


def batches():
    generator = torch.Generator().manual_seed(0)  # torch itself draws otherwise in each process
    return [torch.randn(8, 3, 16, 16, generator=generator) for _ in range(2)]


def examples():
    x = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [(image, index % 10) for index, image in enumerate(x)]


def score(model):
    return float(model(example()).sum())


def nearness(model):
    x = torch.linspace(-1, 1, 8 * 3 * 16 * 16).reshape(8, 3, 16, 16)
    dense = make_net().eval()
    dense.load_state_dict(torch.load("w.pt"))
    return -(model(x) - dense(x)).square().sum(1)


def stopped(model):
    if not isinstance(model[3], nn.Conv2d) and Path("stop").exists():
        raise KeyboardInterrupt
    return nearness(model)


def number():
    return 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("cli")
    (place / "mynets.py").write_text(NETS)
    torch.manual_seed(0)
    namespace: dict = {}
    exec(NETS, namespace)
    torch.save(namespace["make_net"]().state_dict(), place / "w.pt")
    save_file(namespace["Tokens"]().state_dict(), place / "tokens.safetensors")
    (place / "odd.toml").write_text(SETTING.format(data="mynets:examples").replace("rounds", "rouds"))
    (place / "number.toml").write_text(SETTING.format(data="mynets:number"))
    (place / "photos" / "cat").mkdir(parents=True)
    for index in range(5):
        Image.new("RGB", (20, 18), (50 * index, 100, 0)).save(place / "photos" / "cat" / f"{index}.png")
    return place


def tenfold_cli(place, *arguments):
    code = "from tenfold._cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80", "TENFOLD_CACHE": str(place / "cache")},
    )


NET = ("mynets:make_net", "--weights", "w.pt", "--input", "1,3,16,16")


def test_the_line_that_must_work(place):
    done = tenfold_cli(place, "compress", *NET, "--params", "0.5", "--out", "folder")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "->" in line) <= 80
    assert sorted(p.name for p in (place / "folder").iterdir()) == ["model.safetensors", "plan.json", "report.json"]
    report = json.loads((place / "folder" / "report.json").read_text())
    assert report["small"]["params"] <= 0.5 * report["dense"]["params"]
    shown = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert {tuple(line.split()) for line in str(tenfold.Report(**report)).splitlines()} <= shown
    verified = tenfold_cli(place, "verify", "folder", "--weights", "w.pt", "--input", "1,3,16,16", "--json")
    assert json.loads(verified.stdout)["drift"]["relative"] == pytest.approx(report["drift"]["relative"], rel=1e-4)
    for name in ("net.onnx", "net.pt2"):
        exported = tenfold_cli(place, "export", "folder", name, "--input", "1,3,16,16")
        assert exported.returncode == 0, exported.stderr
        assert "any size" in exported.stdout
        assert exported.stderr == ""
        assert (place / name).stat().st_size > 0


def test_a_plan_can_be_read_edited_and_carried_out(place):
    made = tenfold_cli(place, "plan", *NET, "--macs", "50%", "--out", "plan.json")
    assert made.returncode == 0, made.stderr
    assert "of 3 layers" in made.stdout
    plan = tenfold.Plan.loads((place / "plan.json").read_text())
    edited = plan.model_copy(update={"steps": (tenfold.Step(layers=("3",), method="svd", rank=(2,)),)})
    (place / "plan.json").write_text(edited.dumps())
    done = tenfold_cli(place, "compress", *NET, "--plan", "plan.json", "--out", "edited", "--json")
    assert json.loads(done.stdout)["replaced"][0]["factors"] == [[2, 16, 3, 3], [32, 2, 1, 1]]


def test_inspect_shows_every_layer(place):
    done = tenfold_cli(place, "inspect", *NET[:1], "--input", "1,3,16,16", "--freeze", "6")
    assert done.returncode == 0, done.stderr
    for text in ("32x16x3x3", "svd", "tucker", 'frozen by "6"', "no --weights given"):
        assert text in done.stdout + done.stderr, text
    rows = json.loads(tenfold_cli(place, "inspect", *NET, "--json").stdout)
    assert [row["layer"] for row in rows] == ["0", "3", "6"]
    assert rows[1]["params"] == 16 * 32 * 9 + 32


def test_tokens_examples_data_and_metrics(place):
    tokens = ("mynets:Tokens", "--weights", "tokens.safetensors")
    done = tenfold_cli(place, "plan", *tokens, "--input", "input_ids:int64:1,12", "--bytes", "0.8")
    assert done.returncode == 0, done.stderr
    common = ("mynets:make_net", "--weights", "w.pt", "--example", "mynets:example", "--energy", "0.5", "--json")
    report = tenfold_cli(
        place, "compress", *common, "--data", "mynets:batches", "--evaluate", "mynets:score", "--out", "scored"
    )
    assert json.loads(report.stdout)["drift"]["batches"] == 2
    assert json.loads(report.stdout)["metric"]["dense"]
    planned = tenfold_cli(place, "plan", *common, "--data", "mynets:batches")
    assert json.loads(planned.stdout)["steps"] == json.loads((place / "scored" / "plan.json").read_text())["steps"]
    photos = tenfold_cli(place, "compress", *common, "--data", "imagefolder:photos", "--out", "photos-small")
    assert json.loads(photos.stdout)["drift"]["batches"] == 1, photos.stderr


def test_parquet_data(place, shared_data):
    files = shared_data / "data" / "cifar10-jpeg" / "test.parquet"
    data = ("--data", f"parquet:{files}", "--calibration", 200)
    done = tenfold_cli(place, "compress", *NET, "--params", "0.5", *data, "--out", "parquet", "--json")
    assert json.loads(done.stdout)["drift"]["batches"] == 4, done.stderr


def test_the_smallest_network_that_loses_no_more(place):
    asked = ("compress", *NET, "--max-drop", "0.01", "--methods", "svd", "--out", "near")
    done = tenfold_cli(place, *asked, "--evaluate", "mynets:nearness")
    assert done.returncode == 0, done.stderr
    for text in ("parameters tried", "95 % interval", "Written to near"):
        assert text in done.stdout
    assert max(map(len, done.stdout.split("parameters tried")[1].splitlines())) <= 80
    report = json.loads((place / "near" / "report.json").read_text())
    assert report["metric"]["small"] >= report["metric"]["dense"] - 0.01
    assert report["small"]["params"] in [trial["params"] for trial in report["trials"]]
    assert not (place / "near.work").exists()
    planned = tenfold_cli(place, "plan", *asked[1:-2], "--evaluate", "mynets:nearness", "--json")
    assert json.loads(planned.stdout)["steps"] == json.loads((place / "near" / "plan.json").read_text())["steps"]


def test_what_was_interrupted_goes_on(place):
    asked = (
        "compress",
        *NET,
        "--max-drop",
        "0.01",
        "--methods",
        "svd",
        "--out",
        "again",
        "--evaluate",
        "mynets:stopped",
    )
    (place / "stop").touch()
    interrupted = tenfold_cli(place, *asked)
    assert interrupted.returncode == 130
    assert interrupted.stderr.strip().endswith(
        "interrupted; finished work is in again.work: the same command goes on from there."
    )
    assert not (place / "again").exists()
    assert list((place / "again.work").glob("curve-*.safetensors"))
    (place / "stop").unlink()
    (place / "again.work" / "notes.txt").touch()
    assert tenfold_cli(place, *asked, "--json").returncode == 0
    assert [file.name for file in (place / "again.work").iterdir()] == ["notes.txt"]


SETTING = """
model = "mynets:make_net"
weights = "w.pt"
input = "1,3,16,16"
data = "{data}"
calibration = 16
methods = "svd"
augment = {{ shift = 1, cutout = 4 }}

[[rounds]]
params = 0.7
recipe = {{ epochs = 1, batch = 4, lr = 0.001, held_back = 0.2 }}

[[rounds]]
params = 0.5
recipe = {{ epochs = 2, batch = 4, lr = 0.001, held_back = 0.2 }}
"""


def test_training_from_one_file(place):
    (place / "train.toml").write_text(SETTING.format(data="mynets:examples"))
    done = tenfold_cli(place, "train", "train.toml", "--out", "trained")
    assert done.returncode == 0, done.stderr
    assert "held-back metric" in done.stdout
    files = ["model.safetensors", "plan.json", "report.json", "setting.json"]
    assert sorted(p.name for p in (place / "trained").iterdir()) == files
    assert not (place / "trained.work").exists()
    report = json.loads((place / "trained" / "report.json").read_text())
    assert report["small"]["params"] <= 0.5 * report["dense"]["params"]
    assert [len(epochs) for epochs in report["history"]] == [1, 2]
    assert report["command"] == "tenfold train train.toml --out trained"
    assert report["predicted"]["errors"].keys() == {row["layer"] for row in report["replaced"]}
    shown = tenfold_cli(place, "report", "trained", "--out", "trained.html")
    assert shown.returncode == 0, shown.stderr
    assert "Loss of 3 epochs in 2 rounds" in (place / "trained.html").read_text()
    setting = json.loads((place / "trained" / "setting.json").read_text())
    assert setting["rounds"][0]["recipe"]["momentum"] == 0.9  # what was not said is there too
    again = tenfold_cli(place, "train", "trained/setting.json", "--out", "again-trained", "--json")
    assert again.returncode == 0, again.stderr
    weights = [(place / name / "model.safetensors").read_bytes() for name in ("trained", "again-trained")]
    assert weights[0] == weights[1]
    for number in range(8):
        folder = place / "labelled" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 18), (30 * number, 100, 0)).save(folder / f"{number}.png")
    for data, status in (("labelled", 0), ("photos", 1)):  # of one class only
        (place / "train.toml").write_text(SETTING.format(data=f"imagefolder:{data}"))
        done = tenfold_cli(place, "train", "train.toml", "--out", f"{data}-trained")
        assert done.returncode == status, done.stderr
    assert "the data has no column of labels" in done.stderr


COMPRESS = ("compress", *NET, "--out", "refused")
REFUSED = {
    "bare 1": ((*COMPRESS, "--params", "1"), "100%"),
    "no number": ((*COMPRESS, "--params", "nan"), '"nan" is no limit'),
    "infinitely many": ((*COMPRESS, "--params", "infM"), '"infM" is no limit'),
    "share above one": ((*COMPRESS, "--params", "1.5"), "(0, 1]"),
    "zero": ((*COMPRESS, "--params", "0"), "above 0"),
    "words": ((*COMPRESS, "--params", "half"), "0.5 or 50%"),
    "no such recovery": ((*COMPRESS, "--params", "0.5", "--recover", "hope"), "recover is 'hope'"),
    "recovery without data": ((*COMPRESS, "--params", "0.5", "--recover", "blocks"), "needs calibration data"),
    "no target": (COMPRESS, "give a target"),
    "two targets": ((*COMPRESS, "--params", "0.5", "--energy", "0.9"), "give a target"),
    "target beside a plan": ((*COMPRESS, "--plan", "p.json", "--max-drop", "0"), "--plan says what is replaced"),
    "guard beside a plan": ((*COMPRESS, "--plan", "p.json", "--guard"), "--plan says what is replaced"),
    "frozen beside a plan": ((*COMPRESS, "--plan", "p.json", "--freeze", "6"), "--plan says what is replaced"),
    "no setting": (("train", "nothing.toml", "--out", "refused"), "there is no file nothing.toml"),
    "no TOML": (("train", "w.pt", "--out", "refused"), "w.pt is no TOML"),
    "unknown setting": (("train", "odd.toml", "--out", "refused"), "rounds: Field required"),
    "no metric": ((*COMPRESS, "--max-drop", "0.01"), "needs evaluate"),
    "out of reach": ((*COMPRESS, "--params", "10"), "these methods reach"),
    "unknown method": ((*COMPRESS, "--params", "0.5", "--methods", "svd,magic"), 'no method "magic"'),
    "unknown module": (("inspect", "nowhere:net", "--input", "1,3"), "cannot be imported"),
    "unknown callable": (("inspect", "mynets:nothing", "--input", "1,3"), "no callable nothing"),
    "no model": (("inspect", "mynets:number", "--input", "1,3"), "gives a int"),
    "malformed model": (("inspect", "resnet18", "--input", "1,3"), "package.module:callable"),
    "unknown timm": (("inspect", "timm:nothing", "--input", "1,3"), "timm"),
    "no config": (("inspect", "transformers:nowhere", "--input", "1,3"), "config"),
    "no input": (("inspect", "mynets:make_net"), "--input 1,3,32,32"),
    "bad shape": (("inspect", "mynets:make_net", "--input", "1,x"), "no shape"),
    "negative shape": (("inspect", "mynets:make_net", "--input", "1,3,-16,16"), "above 0"),
    "empty shape": (("inspect", "mynets:make_net", "--input", "0,3,16,16"), "above 0"),
    "bad dtype": (("inspect", "mynets:make_net", "--input", "x:int65:1,3"), "no dtype"),
    "wrong shape": (("inspect", "mynets:make_net", "--input", "1,4,16,16"), "fails on an input"),
    "no weights file": (("inspect", "mynets:make_net", "--weights", "none.pt", "--input", "1,3,16,16"), "no file"),
    "other weights": (
        ("inspect", "mynets:Tokens", "--weights", "w.pt", "--input", "input_ids:int64:1,3"),
        "does not belong",
    ),
    "no data": ((*COMPRESS, "--params", "0.5", "--data", "parquet:none.parquet"), "no file or folder"),
    "data that is none": ((*COMPRESS, "--params", "0.5", "--data", "mynets:number"), "batches are of type int"),
    "examples that are none": (("train", "number.toml", "--out", "refused"), "mynets:number gives a int"),
    "absent device": ((*COMPRESS, "--params", "0.5", "--device", "xla"), "no device xla here"),
    "no device": ((*COMPRESS, "--params", "0.5", "--device", "abacus"), "no device"),
    "plan into a folder": (("plan", *NET, "--params", "0.5", "--out", "."), ". is a folder"),
    "kit into a folder": (("profile", *NET, "--out", "photos"), "photos is a folder"),
    "folder in a file": (("compress", *NET, "--params", "0.5", "--out", "w.pt/refused"), "w.pt is a file"),
    "work in a file": ((*COMPRESS, "--params", "0.5", "--work", "w.pt/work"), "w.pt is a file"),
    "folder that it runs in": (("demo", "--out", "."), ". is the folder that this runs in"),
    "no folder": (("verify", "nowhere", "--weights", "w.pt", "--input", "1,3,16,16"), "no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(place, case, monkeypatch, capsys):
    arguments, says = REFUSED[case]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["tenfold", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    complaints = [line for line in capsys.readouterr().err.splitlines() if "no --weights given" not in line]
    assert len(complaints) == 1
    assert says in complaints[0]
    assert not (place / "refused").exists()
    assert not (place / "refused.work").exists()
    assert not [p for p in place.iterdir() if p.name.startswith(".refused")]


def test_usage_errors_and_help(place):
    assert tenfold_cli(place, "compress", "mynets:make_net").returncode == 2
    for command in [each.name or each.callback.__name__ for each in app.registered_commands]:
        shown = tenfold_cli(place, command, "--help").stdout
        assert f"  tenfold {command}" in shown
        assert max(map(len, shown.splitlines())) <= 80
    assert tenfold_cli(place, "--version").stdout.strip() == tenfold.__version__


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("50%", 0.5), ("100%", 1.0), ("1.0", 1.0), ("250000", 250000), ("1.2M", 1200000), ("3k", 3000)],
)
def test_amounts(text, value):
    assert amount(text) == value
    assert type(amount(text)) is type(value)


@pytest.mark.parametrize("text", ["1", "", "abc", "M", "%"])
def test_amounts_that_mean_nothing(text):
    with pytest.raises(TenfoldError):
        amount(text)


def test_the_demo_keeps_its_word(tmp_path):
    done = tenfold_cli(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert report["small"]["params"] <= 0.1 * report["dense"]["params"]
    assert report["metric"]["dense"] > 0.97
    assert report["metric"]["small"] > 0.9
    assert report["timed"]["small_ms"] <= 1.03 * report["timed"]["dense_ms"]
    assert report["command"] == "tenfold demo"
    assert "<h1>tenfold._demo:digits_net, made smaller</h1>" in (tmp_path / "digits" / "report.html").read_text()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert tenfold.load(tmp_path / "digits")
