"""Plans are data."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import images, randomised, small_cnn

import tenfold
from tenfold import Budget, Plan, Step, TenfoldError
from tenfold.methods import SVD, Tucker

steps = st.builds(
    Step,
    layers=st.lists(st.text(min_size=1), min_size=1, max_size=3, unique=True).map(tuple),
    method=st.sampled_from(["tucker", SVD("input"), SVD(), Tucker(), {"name": "other", "modes": ((4, 4), (2, 8))}]),
    rank=st.lists(st.integers(1, 10**6), min_size=1, max_size=4).map(tuple),
)


@given(st.lists(steps, max_size=5), st.one_of(st.none(), st.text()))
def test_a_plan_survives_json(steps, reference):
    plan = Plan(steps, reference=reference)
    assert Plan.loads(plan.dumps()) == plan


def test_the_published_schema_describes_plans():
    schema = json.loads((Path(__file__).parent.parent / "docs" / "plan.schema.json").read_text())
    assert schema == Plan.model_json_schema()
    net = randomised(small_cnn())
    plan = tenfold.plan(net, Budget(params=0.5), example=images(1, 3, 16, 16))
    jsonschema.validate(json.loads(plan.dumps()), schema)


def test_plans_add():
    net, x = randomised(small_cnn()), images(2, 3, 16, 16)
    p = tenfold.plan(net, Budget(params=0.7), example=x)
    halfway = tenfold.apply(net, p)
    q = tenfold.plan(halfway, Budget(params=0.8), example=x)
    at_once, in_turn = tenfold.apply(net, p + q), tenfold.apply(halfway, q)
    assert torch.equal(at_once(x), in_turn(x))
    assert torch.equal(tenfold.apply(net, Plan())(x), net(x))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ('{"version": 1, "steps": [', "cannot be read"),
        ('{"version": 2, "steps": []}', "version"),
        ('{"version": 1, "steps": [{"layers": ["a"], "method": "svd", "rank": [0]}]}', "greater than 0"),
        ('{"version": 1, "steps": [{"layers": [], "method": "svd", "rank": [1]}]}', "at least one layer"),
        ('{"version": 1, "steps": [{"layers": ["a"], "method": "svd"}]}', "rank"),
        ('{"version": 1, "stairs": []}', "stairs"),
    ],
)
def test_damaged_plans_are_refused_in_one_sentence(text, says):
    with pytest.raises(TenfoldError, match=says) as refused:
        Plan.loads(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (Step(layers=("99",), method="svd", rank=(3,)), 'layer "99"'),
        (Step(layers=("5",), method="magic", rank=(3,)), 'no method "magic"'),
        (Step(layers=("5",), method={"name": "svd", "side": "up"}, rank=(3,)), "side 'up'"),
        (Step(layers=("5",), method={"name": "svd", "colour": 3}, rank=(3,)), "colour"),
        (Step(layers=("5",), method="svd", rank=(33,)), "at most"),
        (Step(layers=("5",), method="svd", rank=(3, 3)), "1 entry"),
        (Step(layers=("1",), method="svd", rank=(3,)), "BatchNorm2d"),
    ],
)
def test_steps_that_do_not_fit_are_refused(step, says):
    with pytest.raises(TenfoldError, match=says):
        tenfold.apply(randomised(small_cnn()), Plan((step,)))


def test_steps_that_are_no_plan_are_refused():
    with pytest.raises(TenfoldError, match="the plan is a list"):
        tenfold.apply(small_cnn(), [Step(layers=("5",), method="svd", rank=(3,))])


def test_a_plan_for_another_network_is_refused():
    plan = tenfold.plan(randomised(small_cnn()), Budget(params=0.5), example=images(1, 3, 16, 16))
    other = small_cnn()
    other.append(torch.nn.Linear(10, 2))
    with pytest.raises(TenfoldError, match="another network"):
        tenfold.apply(other, plan)
    with pytest.raises(TenfoldError, match="dtypes"):
        tenfold.apply(small_cnn().double(), plan)
