"""Every block of the README and of the pages runs; the site builds without a warning and loads nothing else."""

import importlib
import re
import subprocess
import sys
import timeit
import tomllib
import webbrowser
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
import torch
from pages import FENCE, NOT_RUN, PAGES, ROOT, Reader, blocks
from PIL import Image as Picture
from safetensors.torch import save_file
from test_latency import Machine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tenfold import _blocks, _fit, _refit, _search
from tenfold._sources import build_model
from tenfold.methods import _cp
from tenfold.train import Recipe

NETS = """
import torch
from torch import nn


def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )


def accuracy(model):
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return -(model(x)).square().mean(1)


def make_tokens():
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 50))


def ids():
    return torch.arange(10)[None]
"""
LANGUAGES = {"python", "sh", "toml", "json", "text", "layers"}
RUN = [
    page for page in PAGES if any(not block.reason() for block in blocks(page) if block.language in ("python", "sh"))
]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Somebody in a folder with what pages take for granted: a network, its weights, images, data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(webbrowser, "open", lambda url: Path(url.removeprefix("file://")).read_text())  # it is there
    _with_less_work(monkeypatch)
    threads, before = torch.get_num_threads(), dict(sys.modules)
    torch.set_num_threads(1)  # several on busy cores wait for each other
    sys.modules.pop("nets", None)  # there is one in tests, too
    importlib.invalidate_caches()
    (tmp_path / "nets.py").write_text(NETS)
    yield Reader(_names())
    torch.set_num_threads(threads)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    sys.modules.update({"nets": before["nets"]} if "nets" in before else {})


def _with_less_work(monkeypatch) -> None:
    """Fits and recovery in fewer steps; and times are counted, or taken once, since on a busy machine they go wrong."""
    for module, name, value in (
        (_blocks, "_STEPS", 12), (_refit, "_STEPS", 3), (_fit, "_STEPS", 10), (_fit, "_CURVE_STEPS", 3),
        (_search, "_TRIALS", 2), (_cp, "_TRIED", 2),
        (_cp, "_CURVE", (3, 1e9)), (_cp, "_FILL", (10, 1e9)), (_cp, "_SHORT", (3, 1e9)), (_cp, "_HEALTHY", 100.0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    Machine(monkeypatch)
    monkeypatch.setitem(sys.modules, "latency", SimpleNamespace(paced_ms=_shortest_ms))  # of kits


def _shortest_ms(runs, *_, **__) -> list[float]:
    return [min(timeit.repeat(run, number=1, repeat=5)) * 1e3 for run in runs]


def _names() -> dict:
    import nets  # the one of the folder

    torch.manual_seed(0)
    model = nets.make_net().eval()
    torch.save(model.state_dict(), "w.pt")
    images, labels = torch.rand(140, 3, 32, 32), torch.arange(140) % 10
    _write_parquet(images, labels)
    dataset = TensorDataset(images, labels)
    Path("shards").mkdir()
    save_file(nets.make_tokens().state_dict(), "shards/model.safetensors")
    with torch.device("meta"):
        model_on_meta = nets.make_tokens()
    return {
        "torch": torch, "model": model, "images": images, "labels": labels,
        "dataset": dataset, "recipe": Recipe(epochs=1),
        "loader": DataLoader(TensorDataset(images[:48], labels[:48]), batch_size=24),
        "model_on_meta": model_on_meta, "ids": nets.ids(),
    }  # fmt: skip


def _write_parquet(images, labels) -> None:
    import datasets

    datasets.disable_progress_bars()
    Path("train").mkdir()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(10))
    pictures = [Picture.fromarray((image * 255).byte().permute(1, 2, 0).numpy()) for image in images]
    rows = {"image": pictures, "label": labels.tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet("train/0.parquet")


def _readme(names, monkeypatch):
    """Weights of another network, and a hub that is a folder."""
    import torchvision

    from tenfold.hub import Compressed

    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pt")
    monkeypatch.setattr(Compressed, "push_to_hub", Compressed.save_pretrained)


def _large(names, monkeypatch):
    """A decoder in files, and its configuration."""
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **small)
    config.architectures = ["LlamaForCausalLM"]
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained("shards")
    Path("shards/config.json").rename("config.json")
    Path("mine.py").write_text("import torch\n\n\ndef ids():\n    return {'input_ids': torch.arange(10)[None]}\n")
    names.update(model_on_meta=build_model("transformers:config.json", empty=True), ids={"input_ids": names["ids"]})


class Detector(nn.Module):
    """A backbone and heads, by the names that torchvision's detectors have."""

    def __init__(self):
        super().__init__()
        convolutions = [nn.Conv2d(*sizes, 3, stride=2, padding=1) for sizes in ((3, 32), (32, 64), (64, 64))]
        self.backbone = nn.Sequential(*(part for conv in convolutions for part in (conv, nn.ReLU())))
        self.rpn = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 12, 1))
        self.roi_heads = nn.Sequential(nn.Linear(64, 5))

    def forward(self, pictures):
        features = self.backbone(torch.stack(pictures))
        return [{"boxes": self.rpn(each[None])[0], "scores": self.roi_heads(each.mean((1, 2)))} for each in features]


def _detector(names, monkeypatch):
    names["detector"] = Detector().eval()


def _vit(names, monkeypatch):
    names.update(name="test_vit", loader=[torch.randn(8, 3, 160, 160) for _ in range(2)])


PREPARE = {
    "README.md": _readme,
    "docs/large-networks.md": _large,
    "docs/recipes/detector.md": _detector,
    "docs/recipes/vit-on-a-gpu.md": _vit,
}


@pytest.mark.parametrize("page", RUN)
def test_every_block_of_a_page_runs(page, reader, monkeypatch):
    PREPARE.get(page, lambda names, patch: None)(reader.names, monkeypatch)
    for block in blocks(page):
        if not block.reason():
            reader.run(block)


@pytest.mark.parametrize("page", PAGES)
def test_no_block_escapes(page):
    """Blocks have a language that somebody knows, files a name, and what is only shown is no command."""
    text, found = (ROOT / page).read_text(), blocks(page)
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text)), "a fence is not closed"
    for block in found:
        assert block.language in LANGUAGES, f"{page}:{block.line}: which language?"
        assert block.language not in ("toml", "json") or block.title, f"{page}:{block.line}: which file?"
        if block.language == "text":
            assert not re.search(
                r"^\s*(tenfold [a-z]|pip |python |make |import |from \w+ import)", block.text, re.MULTILINE
            )


def test_what_is_not_run_is_still_there():
    met = {block.reason() for page in PAGES for block in blocks(page)}
    assert met - {None} == set(NOT_RUN)


def test_commands_of_benchmarks_exist():
    """Found, not imported: some draw, and need more than tests do."""
    text = "".join((ROOT / page).read_text() for page in PAGES)
    for name in sorted(set(re.findall(r"python -m (benchmarks[\w.]*)", text))):
        place = ROOT / name.replace(".", "/")
        files = [path for path in (place.with_suffix(".py"), place / "__main__.py") if path.exists()]
        assert files, name
        assert '__name__ == "__main__"' in files[0].read_text(), name


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for names in re.findall(r"pip install [^\n`]*(?:tenfold|\.)\[([\w,]+)\]", (ROOT / page).read_text()):
            assert set(names.split(",")) <= set(extras), page


def test_targets_of_make_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"(?:^|`)make (\w+)(?=`|$|  )", (ROOT / page).read_text(), re.MULTILINE)) <= targets, page


def test_a_method_of_another_package_is_found(tmp_path):
    """What the page says of entry points, in a process that has not imported the method."""
    for block in blocks("docs/own-method.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    ((name, place),) = project["entry-points"]["tenfold.methods"].items()
    info = tmp_path / f"own_filters-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[tenfold.methods]\n{name} = {place}\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tenfold import Step, methods; "
    code += f"print(methods.find(Step(layers=('0',), method={name!r}, rank=(1,)).method))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "OwnFilters()\n", done.stderr


def test_the_notebook_runs():
    notebook = nbformat.read(ROOT / "docs" / "notebook" / "tenfold.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are left out of the file"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


class Loads(HTMLParser):
    """Everything that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch"):
            return
        if tag in ("script", "link", "img", "iframe", "source", "video", "audio", "embed", "object"):
            self.found += [value for name in ("src", "href", "data", "srcset") if (value := given.get(name))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # strict: after any warning it is 1
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        assert loads.found
        assert [url for url in loads.found if re.match(r"(https?:)?//", url)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import\s+|url\()['\"]?(https?:)?//", sheet.read_text()), sheet


def test_pictures_are_drawn(site):
    for page in ("svd", "spatial-svd", "tucker", "cp", "tensor-train", "joint-svd", "filter-pruning"):
        text = (site / "methods" / f"{page}.html").read_text()
        assert '<figure class="layers"><svg' in text
        assert "language-layers" not in text


@pytest.mark.parametrize("module", ["", ".methods", ".train", ".report", ".testing", ".hub"])
def test_every_public_name_has_its_place_in_the_reference(module):
    reference = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", reference, re.MULTILINE))
    module = f"tenfold{module}"
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert public - shown <= {"tenfold.methods", "tenfold.__version__"}
