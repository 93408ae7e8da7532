"""The rules of every policy: by hand on small cases, and what must hold for any facts."""

import json
import pickle
from typing import Annotated, Any, Union

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import Field, TypeAdapter, ValidationError

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies import POLICIES, Policy
from nlft_ray.core.policies.chord import Chord
from nlft_ray.core.policies.cut import Cut
from nlft_ray.core.policies.dft import Dft
from nlft_ray.core.policies.nlft import Nlft
from nlft_ray.core.policies.origin import Origin
from nlft_ray.core.policies.released import Released
from nlft_ray.core.policies.rft import Rft
from nlft_ray.core.policies.sft import Sft

RESPONSE_POLICIES = [policy() for policy in POLICIES.values() if policy.target == "response"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def facts(base, judge=None, standard=None, cosine=0.0):
    """Facts from probabilities; all neighbours' hidden states have the same cosine."""
    n = len(base)
    return TokenFacts(
        correct=judge is None,
        logp_base=np.log(base),
        logp_judge=None if judge is None else np.log(judge),
        logp_standard=None if standard is None else np.log(standard),
        hidden_norm=np.ones(n),
        hidden_cos=np.full((n, 8), cosine),
    )


# ------------------------------------------------------------------------------------------------- any facts at all

logps = st.one_of(st.sampled_from([0.0, -1e4, -1e-7, -0.05]), st.floats(-12, 0), st.floats(-1e4, 0))


@st.composite
def any_facts(draw):
    n = draw(st.integers(1, 30))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    correct = draw(st.booleans())

    def values(elements, shape):
        return draw(arrays(np.float64, shape, elements=elements)).astype(dtype)

    return TokenFacts(
        correct=correct,
        logp_base=values(logps, n),
        logp_judge=None if correct else values(logps, n),
        logp_standard=None if draw(st.booleans()) else values(logps, n),
        hidden_norm=values(st.floats(0, 1e4), n),
        hidden_cos=values(st.floats(-1, 1), (n, draw(st.integers(0, 8)))),
    )


@pytest.mark.parametrize("policy", RESPONSE_POLICIES, ids=lambda policy: policy.name)
@pytest.mark.filterwarnings("error")
@settings(max_examples=150, deadline=None)
@given(facts=any_facts())
def test_weights_make_sense_for_any_facts(policy, facts):
    weights = policy.weigh(facts)
    for values in (weights.weight, weights.anchor, weights.likelihood, weights.unlikelihood):
        assert values.shape == (facts.n,)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert weights.sign.dtype == np.int8
    assert set(weights.sign.tolist()) <= {-1, 0, 1}
    np.testing.assert_array_equal(weights.sign == 0, weights.weight == 0)
    np.testing.assert_array_equal(weights.unlikelihood, weights.weight * (weights.sign < 0))
    np.testing.assert_array_equal(weights.likelihood, weights.weight * (weights.sign > 0) + weights.anchor)
    assert not (weights.near & weights.saliency).any()
    assert not ((weights.sign < 0) & ~weights.saliency).any()
    if facts.correct:
        assert (weights.sign >= 0).all()
    else:
        assert not weights.anchor.any()
        assert not ((weights.sign > 0) & weights.saliency).any()
        assert not weights.weight[weights.near].any()


@pytest.mark.parametrize("policy", [Nlft(), Released()], ids=lambda policy: policy.name)
@settings(max_examples=150, deadline=None)
@given(facts=any_facts().filter(lambda facts: not facts.correct))
def test_incorrect_responses_lower_exactly_the_losing_tokens(policy, facts):
    weights = policy.weigh(facts)
    judge = facts.logp_judge.astype(np.float64)
    losing = (judge - facts.logp_base > np.log(1.5)) & (np.exp(facts.logp_judge) > 0.01)
    if facts.logp_standard is not None:
        losing &= judge - facts.logp_standard > np.log(1.5)
    np.testing.assert_array_equal(weights.sign < 0, losing)
    np.testing.assert_array_equal(weights.saliency, losing)
    floor = 2 * sigmoid(1.5 - policy.tau)  # a ratio of 1.5 is the least that a losing token can have
    assert (weights.weight[losing] >= floor - 1e-12).all()
    assert (weights.weight <= 2).all()
    if losing.sum() > 0.06 * facts.n:
        assert not weights.weight[~losing].any()


# ------------------------------------------------------------------------------------------------------ by hand


def test_nlft_correct():
    p = [0.98, 0.95, 0.5, 0.5]
    alone = Nlft().weigh(facts([0.5] * 4, standard=p))
    scoring = 1 + 0.6**5
    np.testing.assert_allclose(alone.weight, [scoring, 1.0, (0.5 / 0.95) ** 0.6, (0.5 / 0.95) ** 0.6], rtol=1e-9)
    assert alone.saliency.tolist() == [True, False, False, False]
    assert alone.sign.tolist() == [1, 1, 1, 1]
    assert alone.anchor.tolist() == [1, 1, 1, 1]

    grown = Nlft().weigh(facts([0.5] * 4, standard=p, cosine=0.9))
    assert grown.near.tolist() == [False, True, True, True]
    np.testing.assert_allclose(grown.weight[2:], [(0.5 / 0.95) ** 0.3] * 2, rtol=1e-9)


def test_nlft_incorrect():
    n = 20  # 1 losing token of 20 is below 6 %
    base, judge, standard = np.full(n, 0.4), np.full(n, 0.4), np.full(n, 0.25)
    judge[7] = 0.8
    weights = Nlft().weigh(facts(base, judge, standard))
    expected = np.full(n, 0.5)
    expected[7] = 2 * sigmoid(2.0 - 1.5)
    np.testing.assert_allclose(weights.weight, expected, rtol=1e-9)
    assert weights.sign.tolist() == [-1 if t == 7 else 1 for t in range(n)]
    assert not weights.anchor.any()

    near = Nlft().weigh(facts(base, judge, standard, cosine=0.9))
    assert near.near.tolist() == [abs(t - 7) in range(1, 9) for t in range(n)]
    assert near.growth_truncated == 1
    np.testing.assert_allclose(near.weight, np.where(near.near, 0.0, expected), rtol=1e-9)

    judge[3] = 0.8  # 2 of 20 are above 6 %: nothing else is raised
    many = Nlft().weigh(facts(base, judge, standard))
    assert many.sign.tolist() == [-1 if t in (3, 7) else 0 for t in range(n)]


@pytest.mark.parametrize(
    ("base", "judge", "standard", "losing"),
    [
        (0.4, 0.61, 0.4, True),
        (0.4, 0.59, 0.1, False),
        (0.1, 0.59, 0.4, False),
        (0.001, 0.0101, 0.001, True),
        (0.001, 0.0099, 0.001, False),
        (0.4, 0.61, None, True),
    ],
)
def test_every_condition_of_a_losing_token_counts(base, judge, standard, losing):
    standard = None if standard is None else [standard]
    assert Nlft().weigh(facts([base], [judge], standard)).saliency.tolist() == [losing]


def test_growing_can_be_switched_off():
    weights = Nlft(growing=False).weigh(facts([0.5] * 3, standard=[0.99, 0.5, 0.5], cosine=1.0))
    assert not weights.near.any()
    assert weights.saliency.any()


def test_released_differs_from_nlft_in_growing_and_scale_only():
    case = facts([0.5] * 3, standard=[0.5, 0.99, 0.5], cosine=0.9)
    assert Nlft().weigh(case).near.tolist() == [True, False, True]
    assert Released().weigh(case).near.tolist() == [False, False, False]
    far = facts([0.5] * 3, standard=[0.5, 0.99, 0.5], cosine=0.0)
    assert Nlft().weigh(far).near.tolist() == [False, False, False]
    assert Released().weigh(far).near[0]
    assert (Nlft().loss_scale, Released().loss_scale) == (1.0, 10.0)
    mended = Released(growing_metric="similarity", growing_threshold=0.6, reset_centre=True)
    np.testing.assert_array_equal(mended.weigh(case).weight, Nlft().weigh(case).weight)


@pytest.mark.parametrize("policy", [Nlft(), Released(), Origin(), Cut(), Rft()], ids=lambda policy: policy.name)
def test_correct_responses_without_a_standard_answer_weigh_one(policy):
    weights = policy.weigh(facts([0.1, 0.9]))
    assert weights.weight.tolist() == [1, 1]
    assert weights.sign.tolist() == [1, 1]
    assert not weights.saliency.any()


def test_incorrect_responses_without_a_standard_answer():
    n = 20
    judge = [0.8] + [0.4] * (n - 1)
    weights = Nlft().weigh(facts([0.4] * n, judge))
    np.testing.assert_allclose(weights.weight, [2 * sigmoid(0.5)] + [1.0] * (n - 1))
    assert not Origin().weigh(facts([0.4] * n, judge)).weight.any()


def test_origin_lowers_the_first_candidate_only():
    judge = [0.5, 0.09, 0.9, 0.9, 0.5]
    standard = [0.16, 0.01, 0.1, 0.1, 0.49]
    weights = Origin().weigh(facts([0.99] * 5, judge, standard, cosine=1.0))
    np.testing.assert_allclose(weights.weight, [0.4, 0.1, 1.0, 0.0, 0.0], rtol=1e-9)
    assert weights.sign.tolist() == [1, 1, -1, 0, 0]
    assert weights.saliency.tolist() == [False, False, True, False, False]


def test_origin_without_a_candidate_keeps_every_token():
    weights = Origin().weigh(facts([0.9, 0.9], [0.5, 0.5], [0.25, 0.49]))
    np.testing.assert_allclose(weights.weight, [0.5, 0.7], rtol=1e-9)
    assert weights.sign.tolist() == [1, 1]


def test_origin_weighs_correct_responses_as_nlft():
    case = facts([0.5] * 4, standard=[0.5, 0.97, 0.5, 0.99], cosine=0.7)
    ours, theirs = Origin().weigh(case), Nlft().weigh(case)
    np.testing.assert_array_equal(ours.weight, theirs.weight)
    np.testing.assert_array_equal(ours.anchor, theirs.anchor)


def test_cut():
    weights = Cut(unlikelihood_weight=0.3).weigh(facts([0.5, 0.5], [0.56, 0.54], [0.9, 0.9]))
    assert weights.weight.tolist() == [0.3, 1.0]
    assert weights.sign.tolist() == [-1, 1]
    assert not weights.anchor.any()
    assert Cut().unlikelihood_weight == 1.0


def test_rft():
    assert Rft().weigh(facts([0.5, 0.5])).likelihood.tolist() == [1, 1]
    wrong = Rft().weigh(facts([0.5, 0.5], [0.9, 0.9], [0.1, 0.1]))
    assert not wrong.weight.any()
    assert not wrong.anchor.any()


def test_dft_weighs_by_p_base():
    np.testing.assert_allclose(Dft().weigh(facts([0.5, 0.25, 1.0])).likelihood, [0.5, 0.25, 1.0])
    assert not Dft().weigh(facts([0.5], [0.9], [0.1])).weight.any()


def test_chord_weighs_most_where_the_model_wavers():
    np.testing.assert_allclose(Chord().weigh(facts([0.5, 0.25, 1.0])).likelihood, [0.25, 0.1875, 0.0])
    assert not Chord().weigh(facts([0.5], [0.9], [0.1])).weight.any()


def test_sft_trains_the_standard_answer():
    assert Sft.target == "standard_answer"
    weights = Sft().weigh_tokens(3)
    assert weights.likelihood.tolist() == [1, 1, 1]
    assert weights.unlikelihood.tolist() == [0, 0, 0]
    assert weights.sign.tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="weigh_tokens"):
        Sft().weigh(facts([0.5]))
    with pytest.raises(TypeError, match="standard answers"):
        Nlft().weigh_tokens(3)


# ------------------------------------------------------------------------------------- registry and configuration

ANY_POLICY: Any = Union[tuple(POLICIES.values())]  # noqa: UP007
ADAPTER: TypeAdapter[Any] = TypeAdapter(Annotated[ANY_POLICY, Field(discriminator="name")])


def test_every_policy_is_found_under_its_name():
    assert list(POLICIES) == sorted(POLICIES)
    assert set(POLICIES) >= {"cut", "nlft", "origin", "released", "rft", "sft"}
    for name, policy in POLICIES.items():
        assert policy().name == name
        assert policy.__module__ == f"nlft_ray.core.policies.{name}"
        assert issubclass(policy, Policy)
        assert {"name", "loss_scale"} <= set(policy.__dataclass_fields__)


@pytest.mark.parametrize("name", POLICIES)
def test_a_configuration_reads_and_writes_a_policy(name):
    policy = ADAPTER.validate_python({"name": name, "loss_scale": 2})
    assert type(policy) is POLICIES[name]
    assert policy == POLICIES[name](loss_scale=2.0)
    assert ADAPTER.validate_json(ADAPTER.dump_json(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "nlft", "thetta": 0.9},
        {"name": "nlft", "theta": 1.0},
        {"name": "nlft", "growing_metric": "cosine"},
        {"name": "cut", "judge_base_ratio": 0},
        {"name": "unknown"},
    ],
)
def test_a_configuration_refuses_what_does_not_fit(wrong):
    with pytest.raises(ValidationError, match=list(wrong)[-1]):
        ADAPTER.validate_python(wrong)


@pytest.mark.parametrize(
    "wrong", [{"theta": 1.0}, {"theta": 0.0}, {"tau": float("nan")}, {"anchor": -0.1}, {"min_p_judge": 1.1}]
)
def test_python_refuses_numbers_out_of_bounds_too(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Nlft(**wrong)


def test_every_number_is_described_in_the_schema():
    schema = json.loads(json.dumps(ADAPTER.json_schema()))
    assert len(schema["$defs"]) == len(POLICIES)
    for policy in schema["$defs"].values():
        for field, properties in policy["properties"].items():
            assert field == "name" or len(properties["description"]) > 20, field
    released = schema["$defs"]["Released"]["properties"]
    assert "distance" in released["growing_threshold"]["description"]
    assert released["theta"]["exclusiveMaximum"] == 1


@pytest.mark.parametrize("policy", [Cut(unlikelihood_weight=0.0), Origin(origin_weight=0.0)], ids=lambda p: p.name)
def test_a_losing_token_that_is_left_alone_is_silent(policy):
    weights = policy.weigh(facts([0.1, 0.9], judge=[0.9, 0.9], standard=[0.01, 0.9]))
    assert weights.saliency.tolist() == [True, False]
    assert weights.roles.tolist()[0] == "silent"


def test_roles_of_both_verdicts():
    incorrect = Cut().weigh(facts([0.1, 0.9], judge=[0.9, 0.9], standard=[0.01, 0.9]))
    assert incorrect.roles.tolist() == ["losing", "plain"]
    correct = Nlft().weigh(facts([0.5, 0.5, 0.5], standard=[0.99, 0.5, 0.5], cosine=0.0))
    assert correct.roles.tolist() == ["scoring", "plain", "plain"]
