"""The page as a reader meets it: what it says first, filters, keys, links, the YAML, and what data cannot do to it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nlft_ray.cli.arguments import load_config
from nlft_ray.config import TrainConfig
from nlft_ray.core.policies import POLICIES
from nlft_ray.core.policies.nlft import Nlft
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.stages.report.policies import values_of
from nlft_ray.tables.scored import facts_of
from tests.stages.report.support import HOSTILE, random_rows, write_report, write_scored

OPENING = Nlft(theta=0.9)  # what the run trained
LISTED = "nlft.List.listed().map(example => example.id)"


def test_the_first_sight_says_what_red_and_green_mean_and_which_token_carried_a_mistake(visit: Any) -> None:
    page = visit(viewport={"width": 1280, "height": 900}).page
    lede = page.locator(".lede").text_content()
    assert "Red tokens carried the mistake" in lede
    assert "less likely" in lede
    assert page.locator("#hero .t.losing").count() >= 1
    assert "carried the mistake" in page.locator("#hero .story").text_content()
    assert page.locator("#hero .story").bounding_box()["y"] < 900, "it stands on the first screen"


def test_hovering_a_token_tells_its_facts_and_why(visit: Any, scored_rows: list[dict[str, Any]]) -> None:
    page = visit().page
    page.locator("#shown-count").scroll_into_view_if_needed()
    token = page.locator("#examples .t.losing").first
    token.hover()
    told = page.locator("#details").text_content()
    id = token.evaluate("token => token.closest('.card').example.id")
    row = next(row for row in scored_rows if row["id"] == id)
    t = int(token.get_attribute("data-t"))
    assert f"weight{OPENING.weigh(facts_of(row)).weight[t]:.4f}" in told
    assert all(fact in told for fact in ("p_base", "p_judge", "p_judge / p_base", "−1, lowered", "neighbours"))
    assert "less likely" in told
    assert "losing token" in token.get_attribute("aria-label")


def test_a_slider_recolours_the_tokens_and_counts_anew(visit: Any, scored_rows: list[dict[str, Any]]) -> None:
    page = visit().page
    slider = page.get_by_label("judge_base_ratio, slider")
    before = page.locator("#share-losing").text_content()
    slider.focus()
    page.keyboard.press("End")
    ratio = page.evaluate("nlft.Panel.policy().judge_base_ratio")
    assert ratio > 1.5
    assert page.locator("#field-judge_base_ratio").input_value() == f"{ratio:g}"
    page.wait_for_function("before => document.getElementById('share-losing').textContent !== before", arg=before)
    policy = dataclasses.replace(OPENING, judge_base_ratio=ratio)
    wanted = {row["id"]: int((policy.weigh(facts_of(row)).sign < 0).sum()) for row in scored_rows}
    assert page.evaluate("Object.fromEntries(nlft.List.all().map(e => [e.id, e.losing]))") == wanted
    card = page.locator("#examples .card:not(:empty)").first
    card.scroll_into_view_if_needed()
    id = card.evaluate("card => card.example.id")
    assert card.locator(".t.losing").count() == wanted[id]


def test_a_number_out_of_bounds_is_marked_and_changes_nothing(visit: Any) -> None:
    page = visit().page
    for field, wrong in [("theta", "1"), ("theta", ""), ("tau", "-1"), ("min_p_judge", "2")]:
        page.locator(f"#field-{field}").fill(wrong)
        assert page.locator(f"#field-{field}").get_attribute("aria-invalid") == "true"
        assert page.evaluate("nlft.Panel.policy()")[field] == getattr(OPENING, field)
    page.locator("#field-tau").fill("0.5")
    assert page.locator("#field-tau").get_attribute("aria-invalid") == "false"
    assert page.evaluate("nlft.Panel.policy().tau") == 0.5


def test_help_texts_are_pythons(visit: Any) -> None:
    page = visit().page
    shown = page.locator("#policy-form .help").all_text_contents()
    descriptions = [field.metadata["description"] for field in dataclasses.fields(Nlft) if field.name != "name"]
    assert sorted(shown) == sorted(["Number of tokens by weight, on a logarithmic scale.", *descriptions])


def test_filters_and_orders(visit: Any, scored_rows: list[dict[str, Any]]) -> None:
    page = visit().page
    losing = {row["id"]: int((OPENING.weigh(facts_of(row)).sign < 0).sum()) for row in scored_rows}
    page.locator("#filter-verdict").select_option("correct")
    assert set(page.evaluate(LISTED)) == {row["id"] for row in scored_rows if row["verdict"] == "correct"}
    page.locator("#filter-verdict").select_option("all")
    page.locator("#filter-least").fill("3")
    assert set(page.evaluate(LISTED)) == {id for id, count in losing.items() if count >= 3}
    page.locator("#filter-sort").select_option("most")
    counts = [losing[id] for id in page.evaluate(LISTED)]
    assert counts == sorted(counts, reverse=True)
    page.locator("#filter-least").fill("0")
    page.locator("#filter-text").fill("wie VIEL ist")
    assert page.evaluate(LISTED) == ["grüße"]
    page.locator("#filter-text").fill("no such text")
    assert "none of" in page.locator("#shown-count").text_content()


def test_keys_walk_over_examples_and_tokens(visit: Any) -> None:
    page = visit().page
    listed = page.evaluate(LISTED)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("nlft.List.current().id") == listed[1]
    page.locator("#examples .card.current .t").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.t") == "2"
    assert page.locator("#details").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter-text"
    page.keyboard.type("jk")
    assert page.evaluate("nlft.List.filters().text") == "jk", "letters in a field are text"


def test_one_example_at_a_time(visit: Any) -> None:
    page = visit().page
    page.locator("#filter-view").select_option("one")
    assert page.locator("#examples .card:visible").count() == 1
    page.locator("#next").click()
    assert page.locator("#examples .card:visible").count() == 1
    assert page.evaluate("nlft.List.current().id") == page.evaluate(LISTED)[1]


def test_the_compact_view_shows_more_responses_in_less_room(visit: Any) -> None:
    page = visit(address="#sort=table").page
    page.locator("#shown-count").scroll_into_view_if_needed()
    page.locator("#examples .t").first.wait_for()
    height = "nlft.List.listed()[1].card.offsetHeight"
    before = page.evaluate(height)
    page.locator("#filter-view").select_option("compact")
    assert page.evaluate(height) < before / 2
    card = page.locator("#examples .card").nth(1)
    assert card.locator(".response").is_visible()
    assert card.locator(".question").is_visible()
    assert not card.locator(".judgment, .standard-answer").first.is_visible()
    card.locator(".t").first.hover()
    assert page.locator("#details").is_visible(), "tokens tell what they tell elsewhere"


def test_a_link_brings_the_setting_back(visit: Any) -> None:
    page = visit().page
    page.locator("#policy-name").select_option("origin")
    page.locator("#field-judge_standard_ratio").fill("2.5")
    page.locator("#field-growing").uncheck()
    page.locator("#filter-verdict").select_option("incorrect")
    page.locator("#next").click()
    setting = "JSON.stringify([nlft.Panel.policy(), nlft.List.filters(), nlft.List.current().id])"
    wanted = page.evaluate(setting)
    again = visit(address=page.evaluate("location.hash")).page
    assert again.evaluate(setting) == wanted
    assert '"judge_standard_ratio":2.5' in wanted


def test_a_broken_link_falls_back_to_the_defaults(visit: Any) -> None:
    page = visit(address="#policy=__proto__&theta=x").page
    assert page.evaluate("nlft.Panel.policy()") == values_of(Nlft())
    for address in ("#policy=nlft&theta=7&tau=NaN&sort=bogus", "#policy=nlft&example=absent&least=x"):
        page.evaluate("address => { location.hash = address; }", address)
        page.wait_for_function("address => location.hash === address", arg=address)
        assert page.evaluate("nlft.Panel.policy()") == values_of(Nlft())
        assert page.evaluate("nlft.List.filters().sort") == "losing"
        assert page.evaluate("nlft.List.listed().length") > 0


def test_the_copied_yaml_is_a_policy_for_training(visit: Any, tmp_path: Path) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"]).page
    policy: Any
    for name, policy in POLICIES.items():
        page.locator("#policy-name").select_option(name)
        changes = {"theta": 0.875} if hasattr(policy, "theta") else {}
        for field, value in changes.items():
            page.locator(f"#field-{field}").fill(str(value))
        page.locator("#copy-yaml").click()
        page.wait_for_function(f"() => navigator.clipboard.readText().then(text => text.includes('name: {name}\\n'))")
        (tmp_path / "policy.yaml").write_text(page.evaluate("navigator.clipboard.readText()"))
        config = load_config(TrainConfig, str(tmp_path / "policy.yaml"), ["input=a", "output=b", "model.path=sandbox"])
        assert config.policy == policy(**changes)


def test_hostile_data_is_shown_as_text_and_runs_nothing(
    visit: Any, random_llama: str, scored_rows: list[dict[str, Any]]
) -> None:
    visited = visit(address="#view=one&sort=table&example=%3Cb+onclick%3Dx%3Eid%3C%2Fb%3E")
    page = visited.page
    assert page.evaluate("window.pwned") is None
    assert all(url.startswith((visited.url[:40], "blob:")) for url in visited.requests)
    assert len({url.partition("#")[0] for url in visited.requests}) == 1, "nothing else is loaded"
    card = page.locator("#examples .card.current")
    texts = card.locator(".text").evaluate_all("texts => texts.map(text => text.textContent)")
    assert texts == [f"Q {HOSTILE}", f"A {HOSTILE}", f"J {HOSTILE}"]
    row = next(row for row in scored_rows if row["id"] == "<b onclick=x>id</b>")
    response = load_tokenizer_of(random_llama).decode(row["input_ids"][row["response_start"] :])
    assert HOSTILE in response
    assert card.locator(".response").evaluate("box => box.textContent") == response
    assert card.locator(".unseen").count() > 10, "characters that cannot be seen are named"
    assert page.locator("#run i, #run table b, #examples b[onclick]").count() == 0


def load_tokenizer_of(model: str) -> Any:
    from nlft_ray.config import ModelConfig

    return load_tokenizer(ModelConfig(path=model))


def test_an_emoji_over_several_tokens_and_text_from_right_to_left(visit: Any) -> None:
    page = visit(address="#view=one&sort=table&example=rtl").page
    box = page.locator("#examples .card.current .response")
    assert box.evaluate("box => getComputedStyle(box).direction") == "rtl"
    assert "שלום 🙂 4" in box.text_content()
    parts = box.locator(".t").evaluate_all("tokens => tokens.map(token => token.textContent)")
    at = parts.index("🙂")
    assert parts[at - 3 : at] == ["", "", ""]


def test_two_scored_folders_side_by_side(
    visit: Any, run: str, random_llama: str, scored_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = [*random_rows(60, seed=7)[:40], *scored_rows[:2]]
    second = write_scored(tmp_path / "second", other, random_llama)
    file = write_report(run, compare=second, output=str(tmp_path / "both.html"))
    page = visit(file=file, address="#view=one&sort=table&example=random-3").page
    card = page.locator("#examples .card.current")
    assert card.locator(".response").count() == 2
    shown = card.locator(".response").evaluate_all("boxes => boxes.map(box => box.children.length)")
    of_first = next(row for row in scored_rows if row["id"] == "random-3")
    of_second = next(row for row in other if row["id"] == "random-3")
    assert shown == [len(of_first["logp_base"]), len(of_second["logp_base"])]
    absent = visit(file=file, address="#view=one&sort=table&example=random-50").page
    assert "Not in the second table" in absent.locator("#examples .card.current").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_in_light_and_dark(visit: Any, scheme: str) -> None:
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing sticks out"
    page.locator("#shown-count").scroll_into_view_if_needed()
    token = page.locator("#examples .t.losing").first
    token.tap()
    details, at = page.locator("#details").bounding_box(), token.bounding_box()
    assert at["y"] + at["height"] <= details["y"], "the details do not cover the token"
    assert page.evaluate(CONTRAST) >= 4.5
    page.locator("#filter-view").select_option("compact")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


CONTRAST = """() => {
    const parse = (text) => text.match(/[0-9.]+/g).map(Number);
    const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
    const linear = (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = (rgb) => rgb.map((c) => linear(c / 255))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    let least = Infinity;
    const texts = "#examples .t, #examples .label, .lede, .help, .legend li, a, .verdict";
    for (const element of document.querySelectorAll(texts)) {
        const style = getComputedStyle(element);
        const card = element.closest(".card, .panel") ?? document.body;
        const under = parse(getComputedStyle(card).backgroundColor);
        const ground = luminance(over(parse(style.backgroundColor), under));
        const ink = luminance(parse(style.color).slice(0, 3));
        least = Math.min(least, (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05));
    }
    return least;
}"""
