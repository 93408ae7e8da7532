"""The page's formulas are Python's: weight and role of every token of every row, for every policy and odd settings."""

from typing import Any

import numpy as np
import pytest

from nlft_ray.core import policies
from nlft_ray.core.policies.base import Policy, TokenWeights
from nlft_ray.stages.report.policies import FORMULAS, values_of
from nlft_ray.tables.scored import facts_of

POLICIES: dict[str, Any] = policies.POLICIES  # each takes settings of its own

SETTINGS: list[Policy] = [
    *(policy() for name, policy in POLICIES.items() if name in FORMULAS and policy.target == "response"),
    POLICIES["nlft"](theta=0.5, tau=0.2, max_losing_share=1.0, growing_threshold=0.2),
    POLICIES["nlft"](growing=False, scoring_exponent=0.0, judge_base_ratio=1.05, min_p_judge=0.3),
    POLICIES["nlft"](growing_metric="distance", growing_threshold=-0.5, reset_centre=False, max_losing_share=0.5),
    POLICIES["nlft"](growing_threshold=-1.0, reset_centre=False, anchor=0.0, judge_standard_ratio=0.01),
    POLICIES["released"](growing_threshold=0.05, theta=0.8, incorrect_exponent=2.0, near_exponent=0.0),
    POLICIES["origin"](judge_standard_ratio=1.0, min_p_judge=0.0, origin_weight=0.0, theta=0.7),
    POLICIES["origin"](origin_weight=0.0),  # a losing token that is left alone: silent
    POLICIES["cut"](judge_base_ratio=0.5, unlikelihood_weight=0.25),
    POLICIES["cut"](unlikelihood_weight=0.0),
    POLICIES["nlft"](max_losing_share=0.0, theta=0.99),
]

COMPUTE = """values => {
    nlft.Panel.choose(values.name, values);
    return nlft.List.all().map(example => {
        nlft.Data.weigh(nlft.Panel.policy(), example);
        const { weight, sign, role, saliency, near, anchor, growthTruncated } = example.result;
        return { id: example.id, role, weight: [...weight], sign: [...sign], saliency: [...saliency], near: [...near],
                 anchor: [...anchor], growthTruncated };
    });
}"""


@pytest.fixture(scope="module")
def page(browser: Any, html: Any) -> Any:
    from tests.stages.report.conftest import Visit

    visit = Visit(browser, html)
    yield visit.page
    visit.close()


@pytest.mark.parametrize("policy", SETTINGS, ids=lambda policy: policy.name)
def test_every_token_has_pythons_weight_and_role(page: Any, scored_rows: list[dict[str, Any]], policy: Policy) -> None:
    found = {row["id"]: row for row in page.evaluate(COMPUTE, values_of(policy))}
    assert len(found) == len(scored_rows)
    for row in scored_rows:
        _assert_same(found[row["id"]], policy.weigh(facts_of(row)))


def _assert_same(found: dict[str, Any], wanted: TokenWeights) -> None:
    np.testing.assert_allclose(found["weight"], wanted.weight, rtol=1e-6, atol=1e-6, err_msg=found["id"])
    np.testing.assert_array_equal(found["sign"], wanted.sign)
    np.testing.assert_array_equal(found["role"], wanted.roles)
    np.testing.assert_array_equal(found["saliency"], wanted.saliency)
    np.testing.assert_array_equal(found["near"], wanted.near)
    np.testing.assert_array_equal(found["anchor"], wanted.anchor)
    assert found["growthTruncated"] == wanted.growth_truncated


def test_the_rows_reach_every_rule(scored_rows: list[dict[str, Any]]) -> None:
    """Else equal weights would say little."""
    weighed = [POLICIES["nlft"](max_losing_share=0.2).weigh(facts_of(row)) for row in scored_rows]
    assert sum(int((weights.sign < 0).sum()) for weights in weighed) > 50
    assert sum(int(weights.near.sum()) for weights in weighed) > 50
    assert sum(int((weights.sign == 0).sum()) for weights in weighed) > 50
    assert sum(weights.growth_truncated for weights in weighed) > 0


def test_a_policy_of_standard_answers_weighs_no_response(page: Any) -> None:
    assert all(set(row["weight"]) <= {0} for row in page.evaluate(COMPUTE, {"name": "sft"}))


def test_the_browser_knows_every_policy(page: Any) -> None:
    assert page.locator("#policy-name option").all_text_contents() == list(POLICIES)
    assert set(page.evaluate("nlft.Policies.names")) == FORMULAS
