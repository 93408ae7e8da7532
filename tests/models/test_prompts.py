"""What the model reads: templates, chat templates, and models that have none."""

import pytest

from nlft_ray.config import PromptConfig
from nlft_ray.errors import UserError
from nlft_ray.models.prompts import PromptKind, prompt_ids, prompts_fingerprint
from tests.random_models import byte_tokenizer
from tests.rows import example

ROW = example("1", correct=False, instruction="Be brief.")


def text(
    kind: PromptKind, prompts: PromptConfig | None = None, chat_template: str | None = "default", **row: object
) -> str:
    tokenizer = byte_tokenizer() if chat_template == "default" else byte_tokenizer(chat_template)
    return str(tokenizer.decode(prompt_ids(tokenizer, prompts or PromptConfig(), kind, ROW | row)))


def test_each_context_shows_what_it_is_for() -> None:
    assert text("base") == "<system>Be brief.<end><user>What is 2 + 2?<end><assistant>"
    assert "Weakness: It adds one too many.<end><assistant>" in text("judge")
    assert "#### 4" not in text("judge")
    assert "Standard answer: #### 4<end>" in text("standard")
    assert "It adds one too many" not in text("standard")
    assert "Response: 2 + 2 is 5. #### 5" in text("ask_judgment")


def test_judging_without_a_standard_answer_leaves_it_out() -> None:
    assert "Standard answer" not in text("ask_judgment", standard_answer=None)


def test_an_empty_instruction_makes_no_system_message() -> None:
    assert text("base", instruction="") == "<user>What is 2 + 2?<end><assistant>"


def test_without_a_chat_template_the_plain_one_is_used() -> None:
    assert text("base", chat_template=None) == "Be brief.\n\nWhat is 2 + 2?\n\n"
    assert text("base", chat_template=None, instruction="") == "What is 2 + 2?\n\n"


def test_text_from_data_is_never_a_template() -> None:
    assert "{{ judgment }} {% raw %}" in text("base", question="{{ judgment }} {% raw %}")


def test_a_chat_template_without_system_role() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + (
        "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    )
    with pytest.raises(UserError, match="instruction_role=user"):
        text("base", PromptConfig(instruction_role="system"), refusing)
    assert text("base", PromptConfig(instruction_role="user"), refusing) == "[Be brief.\n\nWhat is 2 + 2?]"


def test_the_fingerprint_follows_templates_and_chat_template() -> None:
    plain, tokenizer = PromptConfig(), byte_tokenizer()
    changed = PromptConfig(judge="{{ question }} badly, thus: {{ judgment }}")
    prints = {
        prompts_fingerprint(tokenizer, plain),
        prompts_fingerprint(tokenizer, changed),
        prompts_fingerprint(byte_tokenizer(None), plain),
    }
    assert len(prints) == 3
    assert prompts_fingerprint(byte_tokenizer(), PromptConfig()) in prints


def test_a_renamed_template_is_taken_and_recorded_under_its_earlier_name() -> None:
    """Runs of before go on: their plans and fingerprints hold that name."""
    text = "{{ question }} {{ response }}"
    renamed, earlier = PromptConfig(ask_judgment=text), PromptConfig.model_validate({"judging": text})
    assert renamed == earlier
    assert renamed.identity()["judging"] == text
    assert "ask_judgment" not in renamed.identity()
