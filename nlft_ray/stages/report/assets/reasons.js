// What a reader is told about a token: its facts in figures, and why the policy treats it as it does.
const Reasons = (() => {
  "use strict";
  const { make, visible, quoted, percent, times } = Dom;

  const WORDS = {
    losing: "losing token: lowered",
    scoring: "scoring token: raised most",
    near: "near a saliency token",
    silent: "left alone",
    plain: "raised",
  };

  function factsAt(example, t) {
    const f = example.facts;
    const p = (logp) => (logp === null ? null : Math.exp(logp[t]));
    const ratio = (other) => (f.logpJudge && other ? Math.exp(f.logpJudge[t] - other[t]) : null);
    const top = f.top[t];
    return {
      base: p(f.logpBase),
      judge: p(f.logpJudge),
      standard: p(f.logpStandard),
      overBase: ratio(f.logpBase),
      overStandard: ratio(f.logpStandard),
      topText: top < 0 ? null : example.set.top_texts[top],
      topP: top < 0 ? null : Math.exp(f.topLogp[t]),
    };
  }

  // Why a policy treats a token as it does. Policies that have formulas here have words of their own.
  const WHY = {
    nlft: (policy, example, t) => (example.correct ? whyRaised(policy, example, t) : whyBySaliency(policy, example, t)),
    origin: (policy, example, t) => (example.correct ? whyRaised(policy, example, t) : whyByOrigin(policy, example, t)),
    cut: whyByJudgment,
    rft: (_, example) => (example.correct ? ALIKE : "Incorrect responses are not used."),
    sft: () => "This policy trains the standard answer's tokens, not the response's.",
  };
  WHY.released = WHY.nlft;

  const ALIKE = "Every token of a correct response is raised alike.";
  const RESEMBLES = "Its hidden state resembles that of a losing token beside it: left alone.";
  const NOT_PART = "Not part of the mistake: raised, the more the likelier it is with the right answer in view.";

  function whyByRole(policy, example, t) {
    const treated = { losing: "lowers", silent: "leaves alone" }[example.result.role[t]] ?? "raises";
    return `Policy ${policy.name} ${treated} this token.`;
  }

  function whyRaised(policy, example, t) {
    const role = example.result.role[t];
    if (role === "scoring") return `With the right answer in view the model is surer of it than θ = ${policy.theta}: raised most.`;
    if (role === "near") return "Its hidden state resembles that of a scoring token beside it: raised nearly as much.";
    return "Part of a correct response: raised, the more the surer the model is with the right answer in view.";
  }

  function whyBySaliency(policy, example, t) {
    const { role, near } = example.result;
    if (role[t] === "losing") return whyLosing(policy, example, t);
    if (near[t]) return RESEMBLES;
    if (role[t] !== "silent") return NOT_PART;
    const share = example.losing / example.facts.n;
    if (share <= policy.max_losing_share) return "With the right answer in view the model rules it out: left alone.";
    return `Left alone: ${percent(share)} of the tokens here are losing, more than ${percent(policy.max_losing_share)}.`;
  }

  function whyByOrigin(policy, example, t) {
    const { role, saliency } = example.result;
    if (role[t] === "losing") return whyLosing(policy, example, t);
    if (role[t] !== "silent") return NOT_PART;
    if (example.facts.logpStandard === null) return "Without a right answer no origin of the mistake shows: left alone.";
    return saliency[t] ? "The origin of the mistake, left alone: origin_weight is 0." : "It follows the origin of the mistake: left alone.";
  }

  function whyByJudgment(policy, example, t) {
    const { role } = example.result;
    if (example.correct) return ALIKE;
    if (role[t] === "losing") return whyLosing(policy, example, t);
    if (role[t] === "silent") return "The judgment makes it likelier, but it is left alone: unlikelihood_weight is 0.";
    return "The judgment does not make it likelier: raised with weight 1.";
  }

  function whyLosing(policy, example, t) {
    const { overBase, overStandard } = factsAt(example, t);
    const reasons = [];
    if (policy.judge_base_ratio !== undefined) {
      reasons.push(`${times(overBase)} as likely as unprompted (more than ${policy.judge_base_ratio} ×)`);
    }
    if (policy.judge_standard_ratio !== undefined && overStandard !== null) {
      reasons.push(`${times(overStandard)} as likely as with the right answer in view (more than ${policy.judge_standard_ratio} ×)`);
    }
    return `Asked to make the mistake that the judgment names, the model finds this token ${reasons.join(", and ")}. ` +
      "So it carried the mistake, and training makes it less likely.";
  }

  function row(name, value, bar) {
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value), bar === null ? make("td") : barCell(bar));
  }

  function barCell(p) {
    const bar = make("span", { class: "bar" });
    bar.style.setProperty("--p", String(p));
    return make("td", { class: "bars", "aria-hidden": "true" }, bar);
  }

  const signed = (value) => value.toFixed(2).replace("-0.00", "0.00").replace("-", "−");

  function neighbours(example, t) {
    const { window, n } = example.facts;
    const items = [];
    for (let m = -Math.min(3, window); m <= Math.min(3, window); m++) {
      const other = t + m;
      if (m === 0 || other < 0 || other >= n) continue;
      const cosine = signed(Policies.cosine(example.facts, t, other));
      items.push(`${m > 0 ? "+" : "−"}${Math.abs(m)} ${quoted(example.tokens[other])} ${cosine}`);
    }
    return items.join("  ·  ");
  }

  function contents(policy, example, t) {
    const facts = factsAt(example, t);
    const result = example.result;
    const role = result.role[t];
    const sign = ["−1, lowered", "0, left alone", "+1, raised"][result.sign[t] + 1];
    const rows = [
      row("p_base", percent(facts.base), facts.base),
      facts.judge === null ? null : row("p_judge", percent(facts.judge), facts.judge),
      facts.standard === null ? null : row("p_standard", percent(facts.standard), facts.standard),
      facts.overBase === null ? null : row("p_judge / p_base", times(facts.overBase), null),
      facts.overStandard === null ? null : row("p_judge / p_standard", times(facts.overStandard), null),
      row("weight", result.weight[t].toFixed(4), null),
      row("sign", sign, null),
      result.anchor[t] > 0 ? row("plain likelihood", `+ ${Number(result.anchor[t].toPrecision(4))}`, null) : null,
    ];
    const instead =
      facts.topText === null
        ? null
        : make("p", {}, "With the right answer in view the model would have put here: ",
            make("b", { dir: "auto" }, ...visible(facts.topText)), ` (${percent(facts.topP)})`);
    return [
      make("p", { class: `head ${role}` }, make("b", { dir: "auto" }, quoted(example.tokens[t])), ` ${WORDS[role]}`),
      make("p", { class: "why" }, (WHY[policy.name] ?? whyByRole)(policy, example, t)),
      make("table", {}, make("tbody", {}, ...rows.filter(Boolean))),
      instead,
      make("p", { class: "neighbours" }, "Hidden-state cosines to neighbours: ", neighbours(example, t)),
    ];
  }

  function label(example, t) {
    return `${quoted(example.tokens[t])}, ${WORDS[example.result.role[t]]}, weight ${example.result.weight[t].toFixed(2)}`;
  }

  return { WORDS, contents, label, factsAt };
})();
