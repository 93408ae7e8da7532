from dataclasses import replace

import numpy as np
import pytest

from nlft_ray.core.facts import TokenFacts


@pytest.fixture
def facts():
    logp = np.log(np.array([0.5, 0.25, 1.0], dtype=np.float32))
    return TokenFacts(False, logp, logp - 1, logp - 2, np.ones(3), np.zeros((3, 8)))


def test_probabilities_are_exponentials(facts):
    assert facts.n == 3
    np.testing.assert_allclose(facts.p_base, [0.5, 0.25, 1.0], rtol=1e-6)
    np.testing.assert_allclose(facts.p_judge, np.exp(-1) * facts.p_base, rtol=1e-6)
    np.testing.assert_allclose(facts.p_standard, np.exp(-2) * facts.p_base, rtol=1e-6)


def test_what_is_missing_stays_missing(facts):
    assert replace(facts, logp_standard=None).p_standard is None
    assert replace(facts, correct=True, logp_judge=None).p_judge is None


@pytest.mark.parametrize("name", ["logp_base", "logp_judge", "logp_standard", "hidden_norm", "hidden_cos"])
@pytest.mark.parametrize("damage", ["short", "dimension", "nan", "infinite"])
def test_a_field_that_does_not_fit_is_named(facts, name, damage):
    values = getattr(facts, name).copy()
    if damage == "short":
        # shortening the field that sets n makes the next one the odd one out
        values, name_in_message = values[:-1], "logp_judge" if name == "logp_base" else name
    else:
        name_in_message = name
    if damage == "dimension":
        values = values[..., None]
    elif damage != "short":
        values.flat[1] = np.nan if damage == "nan" else -np.inf
    with pytest.raises(ValueError, match=f"^{name_in_message} "):
        replace(facts, **{name: values})


def test_empty_responses_are_refused():
    with pytest.raises(ValueError, match="logp_base"):
        TokenFacts(True, np.zeros(0), None, None, np.zeros(0), np.zeros((0, 8)))


def test_judge_context_goes_with_the_verdict(facts):
    with pytest.raises(ValueError, match="logp_judge"):
        replace(facts, logp_judge=None)
    with pytest.raises(ValueError, match="logp_judge"):
        replace(facts, correct=True)
