"""Reports: what they hold, and the page in a browser as people use it: sorted, on a phone, in the dark, on paper."""

import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from nets import images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import Budget, TenfoldError, report
from tenfold._choice import Offer, chosen
from tenfold._compress import asked
from tenfold._verify import Epoch, Report
from tenfold.methods import SVD, FilterPruning, SpatialSVD, Tucker
from tenfold.report._figures import OTHER, STYLES, Layer, layers_figure
from tenfold.report._page import Chart, Code, Column, Fact, Facts, Section, Table, Text, page

EVIL = "</script><img src=x onerror=alert(1)>"
X = images(8, 3, 12, 12)
METHODS = [SVD(), SVD("input"), SpatialSVD(), Tucker()]


def evil_net():
    """A network with a layer whose name is markup."""
    net = small_cnn()
    new = nn.Sequential()
    for name, module in net.named_children():
        new.add_module(EVIL if name == "5" else name, module)
    return randomised(new)


def nearness(dense):
    with torch.no_grad():
        expected = dense(X)
    return lambda model: -(model(X) - expected).square().mean(1)


@pytest.fixture(scope="module")
def made():
    net = evil_net()
    target = Budget(max_drop=0.05)
    return tenfold.compress(net, target, example=X[:1], calibration=[X], methods=METHODS, evaluate=nearness(net))


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """A folder with all that a page can show."""
    folder = tmp_path_factory.mktemp("report") / "small"
    history = [[Epoch(epoch=n, loss=2 / n, metric=0.5 + 0.1 * n, seconds=1.5) for n in (1, 2)] for _ in range(2)]
    more = {"history": history, "command": f"tenfold compress 'nets:{EVIL}' --out small"}
    tenfold.save(folder, made.model, made.plan, Report(**{**dict(made.report), **more}))
    report.write(folder)
    return folder


# What reports hold.


def test_a_report_survives_its_file(made):
    assert Report.loads(made.report.dumps()) == made.report
    text = made.report.dumps()
    assert max(len(line) for line in text.splitlines() if line.strip().startswith('"left"')) > 100  # on one line


def test_what_the_options_said(made):
    told = made.report.predicted
    assert told.on_data
    assert list(told.layers) == [
        name for name, m in evil_net().named_modules() if hasattr(m, "weight") and m.weight.dim() > 1
    ]
    assert told.errors.keys() == {name for step in made.plan.steps for name in step.layers}
    assert all(0 <= error < 1 for error in told.errors.values())
    assert told.plan.params == pytest.approx(made.report.small.params / made.report.dense.params, abs=1e-3)
    assert made.report.asked == "Budget(max_drop=0.05)"
    assert made.report.seed == 0
    assert made.report.command is None


def test_the_tradeoff_is_that_of_budgets():
    net = randomised(small_cnn())
    found = tenfold.options(net, example=X, methods=METHODS)
    result = tenfold.compress(net, Budget(params=0.5), example=X, methods=METHODS)
    points, rule = result.report.predicted.tradeoff, Budget(params=1.0)
    assert len(points) >= 5
    for point in points:
        limits = {"params": round(point.params * found.dense.params) + 1}
        best = chosen(Offer.of(found), limits, lambda pool: rule.weighed(pool.errors, pool.moves).sum(1)).price
        assert best <= point.error * 1.01
        stricter = {"params": round((point.params - 0.02) * found.dense.params)}
        try:
            dearer = chosen(Offer.of(found), stricter, lambda pool: rule.weighed(pool.errors, pool.moves).sum(1)).price
        except TenfoldError:
            continue
        assert point.error <= dearer * 1.01


def test_spectra_are_those_of_the_weights():
    net = randomised(small_cnn())
    told = tenfold.compress(net, Budget(params=0.5), example=X, methods=METHODS).report.predicted
    assert not told.on_data
    spectrum = next(each for each in told.spectra if each.layer == "9")
    values = torch.linalg.svdvals(net[9].weight.detach().double()) ** 2
    for rank, left in zip(spectrum.ranks, spectrum.left, strict=True):
        assert left == pytest.approx(float(values[rank:].sum() / values.sum()), rel=1e-3, abs=1e-9)


def test_with_the_guard(tmp_path):
    net = randomised(nn.Sequential(nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 768)))
    result = tenfold.compress(net, Budget(params=0.4), example=images(64, 768), methods=[SVD()], guard=True)
    assert result.report.predicted.tradeoff == ()  # their times would have to be taken
    result.save(tmp_path / "small")
    text = report.markdown(tmp_path / "small")
    assert "other budgets were not looked at" in text
    for row in ("| dense, measured |", "| small, planned |", "| small, measured |"):
        assert row in text


def test_with_filters(tmp_path):
    net = randomised(small_cnn())
    result = tenfold.compress(net, Budget(params=0.7), example=X, methods=[FilterPruning()])
    result.save(tmp_path / "small")
    text = report.markdown(tmp_path / "small")
    assert "other budgets were not looked at" in text
    assert "| filters l2 |" in text
    assert "| reads fewer channels |" in text
    assert report.html(tmp_path / "small")


def test_targets_as_one_writes_them():
    assert asked(Budget(params=0.5, macs=100)) == "Budget(params=0.5, macs=100)"
    assert asked(tenfold.MinMax(Budget(params=0.5))) == "MinMax(budget=Budget(params=0.5))"
    assert asked(tenfold.Plan()) == "a plan that was given"


# The folder, the command line, and the short form.


def test_a_report_of_verify_alone(tmp_path):
    net = randomised(small_cnn())
    result = tenfold.compress(net, Budget(params=0.5), example=X, methods=[SVD()])
    tenfold.save(tmp_path / "small", result.model, result.plan, tenfold.verify(result.model, net, [X]))
    text = report.markdown(tmp_path / "small")
    assert "made from Python" in text
    assert "Size and error" not in text
    assert "Singular values" not in text
    assert text.count("| svd output |") == len(result.plan.steps)
    assert "<svg" not in report.html(tmp_path / "small").split("</style>")[1].split("<script>")[0]


def test_the_short_form(folder, made):
    text = (folder / "report.md").read_text()
    dense, small = made.report.dense.params, made.report.small.params
    assert f"{small:,} of {dense:,} parameters are left ({small / dense:.1%})" in text
    for heading in ("Before and after", "Size and error", "Networks that were tried", "Layer by layer", "Training"):
        assert f"\n## {heading}\n" in text
    command = f"    tenfold compress 'nets:{EVIL}' --out small"  # code is shown as it is
    assert command in text
    assert not re.search(r"(?<!\\)<", text.replace(command, ""))
    for row in [line for line in text.splitlines() if line.startswith("|")]:
        assert len(re.findall(r"(?<!\\)\|", row)) >= 3


def test_the_command_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "small")
    (tmp_path / "small" / "report.html").unlink()
    (tmp_path / "small" / "model.safetensors").unlink()  # no network is needed
    run = [sys.executable, "-c", "from tenfold._cli import main; main()", "report"]
    for arguments, written in ((["small"], "small/report.html"), (["small", "--out", "page.html"], "page.html")):
        done = subprocess.run([*run, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"Written: {written}")
        assert (tmp_path / written).read_text() == report.html(folder)


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(TenfoldError, match=r"there is no file .*plan\.json"):
        report.html(tmp_path)
    tenfold.save(tmp_path / "small", small_cnn(), tenfold.Plan())
    with pytest.raises(TenfoldError, match=r"there is no file .*report\.json"):
        report.write(tmp_path / "small")
    (tmp_path / "small" / "report.json").write_text("{}")
    with pytest.raises(TenfoldError, match=r"report\.json cannot be read"):
        report.markdown(tmp_path / "small")


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_missing_libraries_are_named(folder, monkeypatch, library):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TenfoldError, match=r"pip install tenfold\[report\]"):
        report.html(folder)
    assert report.markdown(folder)  # needs neither


def test_an_earlier_page_goes_with_the_earlier_network(folder, made, tmp_path):
    shutil.copytree(folder, tmp_path / "small")
    made.save(tmp_path / "small")
    assert not (tmp_path / "small" / "report.html").exists()


# The page as text.


class Outline(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, *names):
        return [(tag, attributes) for tag, attributes in self.tags if tag in names]


def test_names_of_layers_are_no_markup(folder):
    text = (folder / "report.html").read_text()
    outline = Outline(text)
    assert not outline.all("img")
    assert "&lt;/script&gt;&lt;img" in text
    assert len(outline.all("script")) == len(re.findall("</script>", text))


def test_headings_landmarks_and_labels(folder):
    outline = Outline((folder / "report.html").read_text())
    assert outline.all("html")[0][1]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in outline.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(outline.all(landmark)) == 1
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, link in outline.all("a"):
        assert link["href"].removeprefix("#") in ids
    assert len(outline.all("caption")) == len(outline.all("table"))
    assert all(cell["scope"] in ("row", "col") for _, cell in outline.all("th"))


def test_the_policy_lets_nothing_in(folder):
    meta = next(a for _, a in Outline((folder / "report.html").read_text()).all("meta") if "http-equiv" in a)
    assert meta["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in meta["content"]
    assert "unsafe" not in meta["content"].split("script-src")[1].split(";")[0]


def luminance(colour):
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_both_grounds():
    css = (Path(report.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    )
    for palette in (light, dark):
        for name in ("ink", "faint", "link"):
            assert contrast(palette[name], palette["ground"]) >= 4.5
            assert contrast(palette[name], palette["raised"]) >= 4.5
        for colour, _ in [*STYLES.values(), OTHER]:
            assert contrast(colour, palette["ground"]) >= 3
    assert len({symbol for _, symbol in [*STYLES.values(), OTHER]}) == len(STYLES) + 1


def test_every_method_has_a_colour():
    names = {method.name for method in tenfold.methods.DEFAULT} | {"joint", "filters"}
    assert names == STYLES.keys()


def test_thousands_of_layers_still_fit():
    layers = [Layer(f"layers.{n}.proj", "svd", "svd output", "4", 1000 + n, 500, 0.1, "") for n in range(3000)]
    figure = layers_figure(layers)
    assert figure["layout"]["height"] < 2000
    assert figure["layout"]["yaxis"]["ticktext"][-1].endswith("proj")
    assert all(len(trace["x"]) <= 1200 for trace in figure["data"])


@pytest.mark.parametrize("sizes", [(100, 100), (37, 36), (40, 90), (4, 4_000_000)])
def test_logarithmic_axes_have_numbers(sizes):
    axis = layers_figure([Layer("a", "svd", "svd output", "4", *sizes, 0.3, "")])["layout"]["xaxis"]
    low, high = axis["range"]
    assert low < min(map(math.log10, sizes))
    assert high > max(map(math.log10, sizes))
    assert len([tick for tick in axis["tickvals"] if low <= math.log10(tick) <= high]) >= 2


# The page in a browser.


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: pages cannot be looked at")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages cannot be looked at")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def opened(browser, folder):
    """Opens the page; afterwards nothing may have gone wrong in it, and nothing have been asked for."""
    troubles: list[str] = []
    pages = []

    def look(at=folder / "report.html", **setting):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **setting})
        context.route("**/*", lambda route: route.continue_() if route.request.url == at.as_uri() else route.abort())
        context.on("request", lambda asked: troubles.append(asked.url) if asked.url != at.as_uri() else None)
        context.set_default_timeout(5000)
        view = context.new_page()
        view.on("console", lambda message: troubles.append(message.text))
        view.on("pageerror", lambda error: troubles.append(str(error)))
        view.on("dialog", lambda dialog: troubles.append("a layer's name was run"))
        view.goto(at.as_uri())
        pages.append(context)
        return view

    yield look
    for context in pages:
        context.close()
    assert troubles == []


CHARTS = ("Size and error", "Networks that were tried", "Layer by layer", "Singular values", "Time", "Training")


def test_charts_draw_and_say_what_they_show(opened):
    view = opened()
    sections = view.locator("section:has(figure.chart)")
    assert sections.locator("h2").all_inner_texts() == list(CHARTS)
    for figure in view.locator("figure.chart").all():
        assert figure.locator("svg.main-svg .trace").count() > 0
        label = figure.locator("[role=img]").get_attribute("aria-labelledby")
        assert len(view.locator(f"#{label}").inner_text()) > 40
        assert figure.locator("table tbody tr").count() > 0
    names = view.locator("figure.chart .ytick text").all_text_contents()
    assert any(name.startswith("…") and name.endswith("alert(1)>") for name in names)  # shown, not run


def column(view, name, place):
    rows = view.locator(f"section[aria-labelledby={name}] table").first.locator("tbody tr")
    return [row.locator("th, td").nth(place).inner_text() for row in rows.all() if row.is_visible()]


def test_tables_sort_by_pointer_and_by_keyboard(opened):
    view = opened()
    layers = view.locator("section[aria-labelledby=layer-by-layer] table").first
    before, errors = layers.get_by_role("button", name="before", exact=True), layers.get_by_role("button", name="error")
    before.click()
    sizes = [int(text.replace(",", "")) for text in column(view, "layer-by-layer", 3)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2
    before.focus()
    view.keyboard.press("Enter")
    assert column(view, "layer-by-layer", 3) == [f"{size:,}" for size in sorted(sizes, reverse=True)]
    assert layers.locator("th[aria-sort=descending]").all_inner_texts() == ["before"]
    errors.click()
    assert layers.locator("th[aria-sort=ascending]").all_inner_texts() == ["error"]
    shown = column(view, "layer-by-layer", 6)
    known = [float(text.rstrip("%")) for text in shown if text]
    assert known == sorted(known)
    assert "" not in shown[: len(known)]  # what is not known comes last


def test_tables_filter(opened):
    view = opened()
    field = view.locator("section[aria-labelledby=layer-by-layer]").get_by_label("Show only rows with")
    everything = column(view, "layer-by-layer", 0)
    field.fill("IMG SRC")
    assert column(view, "layer-by-layer", 0) == [EVIL]
    assert view.locator("section[aria-labelledby=layer-by-layer] output").inner_text() == f"1 of {len(everything)}"
    field.fill("no such layer")
    assert column(view, "layer-by-layer", 0) == []
    field.fill("")
    assert column(view, "layer-by-layer", 0) == everything


@pytest.mark.parametrize("width", [320, 375])
def test_on_a_phone(opened, width):
    view = opened(viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    view.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate("innerWidth") == width
    for plot in view.locator(".plot").all():
        assert plot.locator("svg.main-svg").first.bounding_box()["width"] <= width


def ground_and_text(view):
    ground = view.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return ground, view.locator("figure.chart .xtick text").first.evaluate("(text) => getComputedStyle(text).fill")


def test_in_the_dark(opened):
    view = opened(color_scheme="light")
    light = ground_and_text(view)
    view.emulate_media(color_scheme="dark")
    view.wait_for_timeout(50)
    dark = ground_and_text(view)
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] != light[0]
    assert dark[1] != light[1]  # charts follow
    assert ground_and_text(opened(color_scheme="dark")) == dark


def test_on_paper(opened):
    view = opened(color_scheme="dark")
    view.locator("section[aria-labelledby=layer-by-layer] input").fill("no such layer")
    folded = view.locator("details:not([open])").count()
    assert folded > 0
    view.emulate_media(media="print", color_scheme="dark")
    view.wait_for_timeout(50)
    assert ground_and_text(view)[0] == "rgb(255, 255, 255)"
    assert not any(tools.is_visible() for tools in view.locator(".tools, nav, summary").all())
    assert len(column(view, "layer-by-layer", 0)) > 1  # also what was filtered away
    assert view.locator("details:not([open])").count() == 0
    assert view.evaluate("document.querySelector('.plot svg').getBoundingClientRect().width") == 680
    view.emulate_media(media="screen", color_scheme="dark")
    view.wait_for_timeout(50)
    assert view.locator("details:not([open])").count() == folded


def test_the_skip_link(opened):
    view = opened()
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert view.locator(".skip").bounding_box()["x"] >= 0
    view.keyboard.press("Enter")
    assert view.evaluate("document.activeElement.id") == "content"


def test_a_page_of_any_sections(opened, tmp_path):
    rows = [(EVIL, 2.0, "b"), ("layer10", None, "a"), ("layer9", 1.0, "c")]
    table = Table("A caption", [Column("name"), Column("number", ".1f"), Column("text")], rows, filters=True)
    figure = {"data": [{"type": "bar", "x": [EVIL], "y": [1]}], "layout": {"height": 200}}
    parts = [Text(EVIL), Facts([Fact(EVIL, "1", "2")]), Chart(figure, "What it shows.", table), table, Code(EVIL)]
    place = tmp_path / "page.html"
    place.write_text(page(EVIL, EVIL, [Section("One", parts), Section("Two", [Text("nothing")])]))
    view = opened(place)
    assert view.title() == EVIL
    assert view.locator("h1").inner_text() == EVIL
    view.locator("table").last.get_by_role("button", name="name").click()
    names = view.locator("table").last.locator("tbody th").all_inner_texts()
    assert names.index("layer9") < names.index("layer10")
