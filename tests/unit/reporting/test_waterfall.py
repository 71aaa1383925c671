"""Where a bound is spent: stages, bars, and what is folded together."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lipverify.reporting.waterfall import SHOWN, fold, read_stages, waterfall
from tests.unit.reporting import documents
from tests.unit.reporting.pages import number


def stages_of(document: documents.Document) -> list:
    return read_stages(document["results"][0]["steps"], document["model"]["nodes"])


def test_a_chain_multiplies_up_to_the_bound() -> None:
    document = documents.mlp()
    stages = stages_of(document)
    assert stages[0].before == 0.0
    for before, after in pairwise(stages):
        assert after.before == before.after
    assert 10 ** stages[-1].after == pytest.approx(document["results"][0]["upper"])
    assert all(stage.closes for stage in stages)


def test_a_merge_starts_from_the_largest_constant_that_enters() -> None:
    document = documents.residual_cnn()
    stages = {stage.names[0]: stage for stage in stages_of(document)}
    merge = stages["layer0.add"]
    entering = max(stages["stem.relu"].after, stages["layer0.conv2"].after)
    assert merge.before == entering < merge.after
    assert merge.closes
    assert not stages["layer0.conv1"].closes  # the skip connection runs beside it
    assert stages["layer0.conv1"].before == stages["stem.relu"].after


def test_a_skip_connection_from_the_input_keeps_stages_open() -> None:
    nodes = [
        documents.node("x", "Input", [], [4]),
        documents.node("a", "Linear", ["x"], [4], 20),
        documents.node("b", "Add", ["x", "a"], [4]),
        documents.node("c", "ReLU", ["b"], [4]),
    ]
    stages = read_stages(documents.steps(nodes, {"a": 2.0}), nodes)
    assert [stage.closes for stage in stages] == [False, True, True]


@pytest.mark.parametrize("count", [4, 24, 25, 60, 200, 1001])
def test_folding_keeps_every_stage_once_and_in_order(count: int) -> None:
    stages = stages_of(documents.deep(max(count, 190)))[:count]
    groups = fold(stages)
    assert [stage for group in groups for stage in group] == stages
    assert len(groups) <= SHOWN


def test_folding_ends_groups_only_where_paths_have_met() -> None:
    stages = stages_of(documents.residual_cnn())
    groups = fold(stages)
    assert len(groups) <= SHOWN < len(stages)
    assert all(group[-1].closes for group in groups)


def test_the_stages_that_cost_most_stand_alone() -> None:
    document = documents.deep()
    groups = fold(stages_of(document))
    alone = {group[0].names[0] for group in groups if len(group) == 1}
    assert {"fc10", "fc40", "fc41", "fc90"} <= alone


def test_bars_meet_and_their_kinds_tell_the_direction() -> None:
    document = documents.deep()
    figure = waterfall(document["results"][0]["steps"], document["model"]["nodes"])
    assert figure is not None
    assert figure.folded
    by_title = {bar.title: bar for bar in figure.bars}
    assert by_title["fc10"].kind == "up"
    assert by_title["fc40"].kind == "down"
    right = {title: bar.left + bar.width for title, bar in by_title.items()}
    # fc40 falls to where fc41 begins.
    assert by_title["fc40"].left == pytest.approx(by_title["fc41"].left, abs=0.01)
    assert right["fc41"] > by_title["fc41"].left
    final = number(figure.bars[-1].reach)
    assert float(final) == pytest.approx(document["results"][0]["upper"], rel=1e-5)
    assert len(figure.stages) == len(document["results"][0]["steps"])


def test_zero_and_numbers_beyond_float64_are_shown_as_such() -> None:
    nodes = documents.chain([4, 4, 4, 4])
    steps = [
        {"nodes": ["fc0"], "gain": None, "log10_reach": 500.25, "note": ""},
        {"nodes": ["act0"], "gain": 1.0, "log10_reach": 500.25, "note": ""},
        {"nodes": ["fc1"], "gain": 0.0, "log10_reach": None, "note": ""},
        {"nodes": ["act1", "fc2"], "gain": 2.0, "log10_reach": None, "note": ""},
    ]
    figure = waterfall(steps, nodes)
    assert figure is not None
    assert [bar.reach for bar in figure.bars] == ["10^500.25", "10^500.25", "0", "0"]
    assert [bar.kind for bar in figure.bars] == ["up", "still", "down", "still"]
    assert figure.bars[0].effective
    assert all(math.isfinite(bar.left) and math.isfinite(bar.width) for bar in figure.bars)


def test_without_steps_there_is_no_figure() -> None:
    assert waterfall([], []) is None
