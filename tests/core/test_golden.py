"""The `released` policy against numbers that the released functions themselves computed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.geometry import hidden_geometry
from nlft_ray.core.logprobs import token_log_odds
from nlft_ray.core.loss import weighted_losses
from nlft_ray.core.policies.released import Released


@pytest.fixture(scope="module")
def cases(shared):
    cases = json.loads((shared / "golden" / "released_weights.json").read_text())
    assert len(cases) == 80
    return cases


def facts_of(case, window):
    norm, cos = hidden_geometry(torch.tensor(case["hidden"], dtype=torch.float64), window)
    judge = case["p_judge"]
    return TokenFacts(
        correct=case["kind"] == "correct",
        logp_base=np.log(case["p_base"]),
        logp_judge=None if judge is None else np.log(judge),
        logp_standard=np.log(case["p_standard"]),
        hidden_norm=norm.numpy(),
        hidden_cos=cos.numpy(),
    )


def policy_of(case):
    return Released(tau=case["sigmoid_shift"])


def loss_of(case, weights):
    p = torch.tensor(case["p_base"], dtype=torch.float64)
    logits = torch.stack([p.log(), torch.log1p(-p)], dim=1)  # a vocabulary of two: this token, or another
    log_odds = token_log_odds(logits, torch.zeros(len(p), dtype=torch.int64))
    losses = weighted_losses(log_odds, torch.from_numpy(weights.likelihood), torch.from_numpy(weights.unlikelihood))
    return losses.total.mean().item()


def test_weights_and_signs(cases):
    for index, case in enumerate(cases):
        weights = policy_of(case).weigh(facts_of(case, window=len(case["p_base"]) - 1))
        np.testing.assert_allclose(weights.weight, case["weight"], atol=1e-4, rtol=0, err_msg=f"case {index}")
        np.testing.assert_array_equal(weights.sign, case["sign"], err_msg=f"case {index}")
        assert weights.growth_truncated == 0


def test_loss_of_the_weighted_term(cases):
    for index, case in enumerate(cases):
        policy = replace(policy_of(case), anchor=0.0)
        weights = policy.weigh(facts_of(case, window=len(case["p_base"]) - 1))
        assert loss_of(case, weights) == pytest.approx(case["loss"], rel=1e-5), f"case {index}"


def test_anchor_adds_the_plain_likelihood_of_correct_responses(cases):
    for case in cases:
        facts = facts_of(case, window=8)
        weights = policy_of(case).weigh(facts)
        without = replace(policy_of(case), anchor=0.0).weigh(facts)
        expected = -facts.logp_base.mean() if facts.correct else 0.0
        assert loss_of(case, weights) - loss_of(case, without) == pytest.approx(expected, abs=1e-9)


def test_a_window_of_eight_is_exact_where_nothing_was_truncated(cases):
    exact = untruncated = 0
    for case in cases:
        weights = policy_of(case).weigh(facts_of(case, window=8))
        same = np.allclose(weights.weight, case["weight"], atol=1e-4, rtol=0)
        same &= bool((weights.sign == case["sign"]).all())
        exact += same
        untruncated += weights.growth_truncated == 0
        assert same or weights.growth_truncated > 0
    assert (exact, untruncated) == (72, 71)  # of 80; one walk that was cut short would have gone no further
