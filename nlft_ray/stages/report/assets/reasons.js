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

  function why(policy, example, t) {
    const role = Policies.role(example.result, t);
    const facts = factsAt(example, t);
    if (policy.name === "sft") return "This policy trains the standard answer's tokens, not the response's.";
    if (policy.name === "rft") {
      return example.correct ? "Every token of a correct response is raised alike." : "Incorrect responses are not used.";
    }
    if (role === "losing") return whyLosing(policy, facts);
    if (example.correct) return whyCorrect(policy, role);
    return whyOther(policy, example, role, t);
  }

  function whyLosing(policy, facts) {
    const parts = ["Asked to make the mistake that the judgment names, the model finds this token"];
    const reasons = [];
    if ("judge_base_ratio" in policy) {
      reasons.push(`${times(facts.overBase)} as likely as unprompted (more than ${policy.judge_base_ratio} ×)`);
    }
    if ("judge_standard_ratio" in policy && facts.overStandard !== null) {
      reasons.push(`${times(facts.overStandard)} as likely as with the right answer in view (more than ${policy.judge_standard_ratio} ×)`);
    }
    return `${parts[0]} ${reasons.join(", and ")}. So it carried the mistake, and training makes it less likely.`;
  }

  function whyCorrect(policy, role) {
    if (!("theta" in policy)) return "Every token of a correct response is raised alike.";
    if (role === "scoring") return `With the right answer in view the model is surer of it than θ = ${policy.theta}: raised most.`;
    if (role === "near") return "Its hidden state resembles that of a scoring token beside it: raised nearly as much.";
    return "Part of a correct response: raised, the more the surer the model is with the right answer in view.";
  }

  function whyOther(policy, example, role, t) {
    if (example.result.near[t]) return "Its hidden state resembles that of a losing token beside it: left alone.";
    if (policy.name === "origin" && role === "silent") return "It follows the origin of the mistake: left alone.";
    if (role === "silent") {
      const share = percent(example.losing / example.facts.n);
      return `Left alone: ${share} of the tokens here are losing, more than ${percent(policy.max_losing_share ?? 0)}.`;
    }
    if (policy.name === "cut") return "The judgment does not make it likelier: raised with weight 1.";
    return "Not part of the mistake: raised, the more the likelier it is with the right answer in view.";
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
    const { hiddenCos, window, n } = example.facts;
    const items = [];
    for (let m = -Math.min(3, window); m <= Math.min(3, window); m++) {
      const other = t + m;
      if (m === 0 || other < 0 || other >= n) continue;
      const cosine = hiddenCos[Math.min(t, other) * window + Math.abs(m) - 1];
      items.push(`${m > 0 ? "+" : "−"}${Math.abs(m)} ${quoted(example.tokens[other])} ${signed(cosine)}`);
    }
    return items.join("  ·  ");
  }

  function contents(policy, example, t) {
    const role = Policies.role(example.result, t);
    const facts = factsAt(example, t);
    const weight = example.result.weight[t];
    const sign = ["−1, lowered", "0, left alone", "+1, raised"][example.result.sign[t] + 1];
    const rows = [
      row("p_base", percent(facts.base), facts.base),
      facts.judge === null ? null : row("p_judge", percent(facts.judge), facts.judge),
      facts.standard === null ? null : row("p_standard", percent(facts.standard), facts.standard),
      facts.overBase === null ? null : row("p_judge / p_base", times(facts.overBase), null),
      facts.overStandard === null ? null : row("p_judge / p_standard", times(facts.overStandard), null),
      row("weight", weight.toFixed(4), null),
      row("sign", sign, null),
      example.result.anchor > 0 ? row("plain likelihood", `+ ${example.result.anchor}`, null) : null,
    ];
    const instead =
      facts.topText === null
        ? null
        : make("p", {}, "With the right answer in view the model would have put here: ",
            make("b", { dir: "auto" }, ...visible(facts.topText)), ` (${percent(facts.topP)})`);
    return [
      make("p", { class: `head ${role}` }, make("b", { dir: "auto" }, quoted(example.tokens[t])), ` ${WORDS[role]}`),
      make("p", { class: "why" }, why(policy, example, t)),
      make("table", {}, make("tbody", {}, ...rows.filter(Boolean))),
      instead,
      make("p", { class: "neighbours" }, "Hidden-state cosines to neighbours: ", neighbours(example, t)),
    ];
  }

  function label(example, t) {
    return `${quoted(example.tokens[t])}, ${WORDS[Policies.role(example.result, t)]}, weight ${example.result.weight[t].toFixed(2)}`;
  }

  return { WORDS, contents, label, factsAt };
})();
