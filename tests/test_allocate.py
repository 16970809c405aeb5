"""The allocator against brute force."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold._allocate import Option, UnreachableError, allocate, worthwhile


def brute_force(options, limits):
    """The least error over every subset that covers each layer once and meets the limits."""
    layers = sorted(set().union(*(option.layers for option in options)))
    best = None

    def search(uncovered, picked, costs, error):
        nonlocal best
        if not uncovered:
            if all(c <= limit for c, limit in zip(costs, limits, strict=True)) and (best is None or error < best):
                best = error
            return
        for index, option in enumerate(options):
            if uncovered[0] in option.layers and option.layers <= set(uncovered):
                total = [a + b for a, b in zip(costs, option.costs, strict=True)]
                rest = [layer for layer in uncovered if layer not in option.layers]
                search(rest, [*picked, index], total, error + option.error)

    search(layers, [], [0] * len(limits), 0.0)
    return best


def random_options(rng, layers, ranks, limits, shared):
    options = []
    for layer in range(layers):
        options.append(Option(frozenset([str(layer)]), (0,) * limits, 0.0))
        for _ in range(ranks):
            costs = tuple(int(c) for c in -rng.integers(1, 1000, limits))
            options.append(Option(frozenset([str(layer)]), costs, float(rng.random())))
    for _ in range(shared):
        pair = rng.choice(layers, 2, replace=False)
        costs = tuple(int(c) for c in -rng.integers(500, 2000, limits))
        options.append(Option(frozenset(map(str, pair)), costs, float(rng.random())))
    return options


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    limits=st.integers(1, 3),
    shared=st.integers(0, 4),
    layers=st.integers(2, 4),
    unit=st.sampled_from([1.0, 1e-5, 1e-9]),
)
def test_allocator_equals_brute_force(seed, limits, shared, layers, unit):
    rng = np.random.default_rng(seed)
    options = [replace(one, error=unit * one.error) for one in random_options(rng, layers, 4, limits, shared)]
    room = [-int(rng.integers(0, 600 * layers)) for _ in range(limits)]
    expected = brute_force(options, room)
    try:
        picks = allocate(options, room)
    except UnreachableError:
        assert expected is None
        return
    assert expected is not None
    assert sum(options[pick].error for pick in picks) == pytest.approx(expected, rel=1e-9, abs=unit * 1e-12)
    totals = [sum(options[pick].costs[j] for pick in picks) for j in range(limits)]
    assert all(total <= limit for total, limit in zip(totals, room, strict=True))
    covered = sorted(layer for pick in picks for layer in options[pick].layers)
    assert covered == sorted(set(covered)) == [str(layer) for layer in range(layers)]


def test_exact_to_one_unit_at_large_costs():
    options = [Option(frozenset("a"), (0,), 0.0), Option(frozenset("a"), (-(10**11) + 1,), 0.1)]
    options += [Option(frozenset("a"), (-(10**11),), 0.2)]
    assert allocate(options, [-(10**11)]) == [2]
    assert allocate(options, [-(10**11) + 1]) == [1]


def test_unreachable_says_the_least():
    options = [Option(frozenset(layer), (cost,), 0.0) for layer, cost in product("ab", (0, -3, -5))]
    with pytest.raises(UnreachableError) as refused:
        allocate(options, [-11])
    assert refused.value.least == (-10,)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), columns=st.integers(1, 3))
def test_worthwhile_keeps_every_undominated_option_when_not_thinned(seed, columns):
    rng = np.random.default_rng(seed)
    costs, errors = rng.integers(0, 30, (40, columns)).astype(float), rng.integers(0, 30, 40).astype(float)
    kept = worthwhile(costs, errors, np.zeros(columns))
    table = np.column_stack([errors, costs])
    for index in range(40):
        others = table[kept]
        assert (others <= table[index]).all(axis=1).any(), "something kept is as good in everything"
    for index in kept:
        better = (table <= table[index]).all(axis=1) & (table < table[index]).any(axis=1)
        assert not better.any()


def test_thinning_keeps_the_cheapest():
    costs, errors = np.arange(100.0)[::-1, None], np.arange(100.0)
    kept = worthwhile(costs, errors, np.array([10.0]))
    assert 0 in kept
    assert 99 in kept
    assert len(kept) <= 12
