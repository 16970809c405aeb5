"""Wrong input is refused before work starts, in one sentence that says what to do."""

import pytest
import torch
from nets import TokenNet, images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import Budget, TenfoldError
from tenfold.methods import SVD


def with_value(value):
    model = small_cnn()
    model[5].weight.data[0, 0, 0, 0] = value
    return model


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        raise KeyError("lost")


def exported(*layers):
    """The module that torch.export makes."""
    return torch.export.export(nn.Sequential(*layers), (images(2, 3, 16, 16),)).module()


GOOD = {"model": small_cnn(), "target": Budget(params=0.5), "example": images(1, 3, 16, 16)}

REFUSED = {
    "NaN": ({"model": with_value(float("nan"))}, r"5\.weight has 1 of 9,216 values"),
    "infinite": ({"model": with_value(float("inf"))}, "NaN or infinite"),
    "wrong channels": ({"example": images(1, 4, 16, 16)}, "fails on an input of 1x4x16x16 float32"),
    "wrong rank": ({"example": images(16)}, "fails on an input of 16"),
    "not an example": ({"example": [1, 2]}, "is a list"),
    "failing forward": ({"model": Failing(), "example": images(1, 4)}, "KeyError: 'lost'"),
    "not a model": ({"model": "resnet"}, "is a str"),
    "meta": ({"model": small_cnn().to("meta")}, "meta device"),
    "lazy": ({"model": nn.Sequential(nn.LazyLinear(4))}, "run the model once"),
    "one layer": (
        {"model": nn.Conv2d(3, 64, 3)},
        r"the model itself \(1,792: the model is this layer alone, .*Sequential",
    ),
    "exported": ({"model": exported(nn.Conv2d(3, 8, 3))}, "give the module that it was exported from"),
    "complex": (
        {"model": nn.Sequential(nn.Linear(9, 9, dtype=torch.cfloat)), "example": images(2, 9).cfloat()},
        r"0 \(90: its parameters are no real floating-point numbers\)",
    ),
    "not a target": ({"target": 0.5}, r"Budget\(params=0\.5\)"),
    "no methods": ({"methods": []}, "methods is empty"),
    "one method": ({"methods": SVD()}, r"give a list: \[SVD\("),
    "not a method": ({"methods": ["svd"]}, "give instances"),
    "freeze is a string": ({"freeze": "head"}, r'\["head"\]'),
    "no layer to freeze": ({"freeze": ["head.*"]}, "matches no layer"),
    "recover": ({"recover": "magic"}, '"auto", .*"none"'),
    "iterator": ({"calibration": iter([images(1, 3, 16, 16)])}, "only once"),
    "empty calibration": ({"calibration": []}, "no batches"),
    "data that is none": ({"calibration": 3}, "batches are of type int"),
    "patterns that are none": ({"freeze": [0]}, "freeze pattern 0 is no string"),
    "freeze is a number": ({"freeze": 3}, "freeze is 3"),
    "no function": ({"evaluate": 3, "example": None}, "evaluate is 3; give a function"),
    "evaluate": ({"evaluate": lambda model: "good"}, "one number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changed, says = REFUSED[case]
    arguments = GOOD | changed
    with pytest.raises(TenfoldError, match=says) as refused:
        tenfold.compress(arguments.pop("model"), arguments.pop("target"), **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_scripted_model_is_refused():
    with pytest.raises(TenfoldError, match="give the module it was made from"):
        tenfold.options(torch.jit.script(small_cnn()), example=images(1, 3, 16, 16))


def test_every_refusal_is_a_value_error():
    assert issubclass(TenfoldError, ValueError)


def test_verifying_different_networks_is_refused():
    with pytest.raises(TenfoldError, match="differ in form"):
        tenfold.verify(nn.Linear(4, 3), nn.Linear(4, 5), [images(2, 4)])


def test_norms_over_single_values_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(TenfoldError, match="more than 1 value"):
        tenfold.reestimate_norms(model, [images(1, 4)])


def test_reestimated_norms_are_those_of_the_data():
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    batches = [images(8, 3, 5, 5, seed=s) for s in range(4)]
    new = tenfold.reestimate_norms(model, batches)
    hidden = torch.stack([model[0](batch) for batch in batches])
    assert torch.allclose(new[1].running_mean, hidden.mean((0, 1, 3, 4)), atol=1e-5)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in hidden])
    assert torch.allclose(new[1].running_var, variances.mean(0), rtol=1e-4)
    assert new[1].momentum == model[1].momentum
    assert not new[1].training


def test_batches_with_targets_and_keywords():
    ids = {"input_ids": torch.ones(2, 4, dtype=torch.int64), "attention_mask": torch.ones(2, 4)}
    result = tenfold.compress(TokenNet(), Budget(params=0.8), example=ids, calibration=[(ids, torch.ones(2)), ids])
    assert result.report.drift.batches == 2
    several = [(images(4, 5), images(4, 5)), ((images(4, 5), images(4, 5)), torch.zeros(4))]
    assert tenfold.calibrate(Adds(), several).layers["layer"].count == 16
    labelled = [(images(4, 3, 16, 16), torch.zeros(4)), [images(4, 3, 16, 16), torch.zeros(4)]]
    assert tenfold.compress(small_cnn(), Budget(params=0.5), example=labelled[0][0], calibration=labelled)


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x, y):
        return self.layer(x) + self.layer(y)


class Masks(Adds):
    def forward(self, x, mask=None):
        return self.layer(x) if mask is None else self.layer(x) * mask


def test_the_report_is_about_the_example():
    """A tuple of two is two arguments there, even if one may be left out."""
    model, x, mask = Masks(), images(2, 5), torch.tensor([0.0, 1, 1, 0, 1])
    result = tenfold.compress(model, tenfold.Ranks(rank=1), example=(x, mask))
    asked = {"x": x, "mask": mask}
    assert result.report.drift.relative == tenfold.verify(result.model, model, [asked]).drift.relative


def test_methods_may_be_generated():
    given = {"example": GOOD["example"], "methods": (method for method in [SVD()])}
    assert tenfold.plan(GOOD["model"], Budget(params=0.5), **given).steps
