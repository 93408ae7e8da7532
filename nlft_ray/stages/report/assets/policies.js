// The formulas of nlft_ray.core.policies, term by term, over the facts of one response. A policy that has none here is
// shown with the weights that Python worked out (stages/report/policies.py lists those that have).
//
// Facts: { correct, n, window, logpBase, logpJudge, logpStandard, pStandard, hiddenNorm, hiddenCos }, arrays of n
// (hiddenCos: n · window); logpJudge and logpStandard are null where Python's are None. pStandard is exp(logpStandard)
// in float32 as Python computed it, for correct responses.
//
// Python compares float32 arrays with numbers in float32, hence Math.fround.
const Policies = (() => {
  "use strict";

  function blank(n) {
    return {
      weight: new Float64Array(n),
      sign: new Int8Array(n),
      saliency: new Uint8Array(n),
      near: new Uint8Array(n),
      anchor: new Float64Array(n),
      role: new Array(n).fill("silent"),
      growthTruncated: 0,
    };
  }

  // Signs and roles follow from the rest. Roles: the twin of TokenWeights.roles in core/policies/base.py.
  function signed(result, lowered) {
    const { weight, sign, saliency, near, role } = result;
    for (let t = 0; t < weight.length; t++) {
      sign[t] = weight[t] > 0 ? (lowered && lowered[t] ? -1 : 1) : 0;
      if (sign[t] < 0) role[t] = "losing";
      else if (sign[t] > 0) role[t] = saliency[t] ? "scoring" : near[t] ? "near" : "plain";
    }
    return result;
  }

  // whether p/p_other > ratio; true where the other context is missing
  function ratioExceeds(logp, other, logRatio, t) {
    return other === null || logp[t] - other[t] > logRatio;
  }

  // (p/scale)^exponent; 1 where the context is missing
  function power(logp, exponent, logScale, t) {
    return logp === null ? 1 : Math.exp(exponent * (logp[t] - logScale));
  }

  function sigmoidOfRatio(logp, other, tau, t) {
    const ratio = Math.exp(Math.min(logp[t] - other[t], 700));
    return 1 / (1 + Math.exp(tau - ratio));
  }

  // cosine of the hidden states of tokens a and b, at most `window` apart
  function cosine(facts, a, b) {
    if (a === b) return 1;
    const first = Math.min(a, b);
    return facts.hiddenCos[first * facts.window + Math.abs(a - b) - 1];
  }

  // The walk of one seed. Its centre is a weighted sum of hidden states: part[window + m] is the length that the
  // state of token seed + m contributes, so that the centre's cosine to a neighbour follows from pairwise cosines.
  class Walk {
    constructor(facts, policy) {
      this.facts = facts;
      this.policy = policy;
      this.part = new Float64Array(2 * facts.window + 1);
    }

    centreOn(seed) {
      this.seed = seed;
      this.part.fill(0);
      this.part[this.facts.window] = this.facts.hiddenNorm[seed];
      this.square = this.facts.hiddenNorm[seed] ** 2;
      this.from = this.to = 0; // offsets of the parts that are not zero
    }

    // Walk one way; `behind` is how far the centre already reaches to the other side.
    go(direction, behind) {
      const { n, window } = this.facts;
      for (let step = 1; ; step++) {
        const neighbour = this.seed + direction * step;
        if (neighbour < 0 || neighbour >= n) return { reach: step - 1, cut: false };
        if (behind + step > window) return { reach: step - 1, cut: true };
        if (!this.takesIn(neighbour, direction * step)) return { reach: step - 1, cut: false };
      }
    }

    takesIn(neighbour, offset) {
      const { facts, part, policy } = this;
      let projection = 0;
      for (let m = this.from; m <= this.to; m++) {
        projection += part[facts.window + m] * cosine(facts, neighbour, this.seed + m);
      }
      const length = Math.sqrt(Math.max(this.square, 0));
      const similarity = length > 0 ? projection / length : 0;
      const takes =
        policy.growing_metric === "similarity"
          ? similarity >= policy.growing_threshold
          : 1 - similarity > policy.growing_threshold;
      if (!takes) return false;
      const norm = facts.hiddenNorm[neighbour];
      for (let m = this.from; m <= this.to; m++) part[facts.window + m] /= 2;
      part[facts.window + offset] = norm / 2;
      this.square = (this.square + 2 * norm * projection + norm ** 2) / 4;
      this.from = Math.min(this.from, offset);
      this.to = Math.max(this.to, offset);
      return true;
    }
  }

  function grow(policy, facts, result) {
    if (!policy.growing) return;
    const walk = new Walk(facts, policy);
    for (let seed = 0; seed < facts.n; seed++) {
      if (!result.saliency[seed]) continue;
      walk.centreOn(seed);
      const left = walk.go(-1, 0);
      if (policy.reset_centre) walk.centreOn(seed);
      const right = walk.go(+1, policy.reset_centre ? 0 : left.reach);
      result.near.fill(1, seed - left.reach, seed + right.reach + 1);
      if (left.cut || right.cut) result.growthTruncated++;
    }
    for (let t = 0; t < facts.n; t++) if (result.saliency[t]) result.near[t] = 0;
  }

  function weighCorrect(policy, facts) {
    const result = blank(facts.n);
    result.anchor.fill(policy.anchor);
    if (facts.logpStandard === null) {
      result.weight.fill(1);
      return signed(result);
    }
    const theta32 = Math.fround(policy.theta);
    const logTheta = Math.log(policy.theta);
    for (let t = 0; t < facts.n; t++) result.saliency[t] = facts.pStandard[t] > theta32 ? 1 : 0;
    grow(policy, facts, result);
    for (let t = 0; t < facts.n; t++) {
      if (result.saliency[t]) {
        const over = Math.max(facts.pStandard[t] - policy.theta, 0) / (1 - policy.theta);
        result.weight[t] = 1 + over ** policy.scoring_exponent;
      } else {
        const exponent = result.near[t] ? policy.near_exponent : policy.elsewhere_exponent;
        result.weight[t] = power(facts.logpStandard, exponent, logTheta, t);
      }
    }
    return signed(result);
  }

  function weighIncorrect(policy, facts) {
    const result = blank(facts.n);
    const losing = result.saliency;
    const { logpBase, logpJudge, logpStandard } = facts;
    const overBase = Math.log(policy.judge_base_ratio);
    const overStandard = Math.log(policy.judge_standard_ratio);
    const leastJudge = Math.fround(policy.min_p_judge);
    let count = 0;
    for (let t = 0; t < facts.n; t++) {
      const loses =
        ratioExceeds(logpJudge, logpBase, overBase, t) &&
        ratioExceeds(logpJudge, logpStandard, overStandard, t) &&
        Math.fround(Math.exp(logpJudge[t])) > leastJudge;
      if (loses) {
        losing[t] = 1;
        count++;
      }
    }
    grow(policy, facts, result);
    const silenced = count / facts.n > policy.max_losing_share;
    for (let t = 0; t < facts.n; t++) {
      if (losing[t]) result.weight[t] = 2 * sigmoidOfRatio(logpJudge, logpBase, policy.tau, t);
      else if (!result.near[t] && !silenced) result.weight[t] = power(logpStandard, policy.incorrect_exponent, 0, t);
    }
    return signed(result, losing);
  }

  function saliencyRule(policy, facts) {
    return facts.correct ? weighCorrect(policy, facts) : weighIncorrect(policy, facts);
  }

  function origin(policy, facts) {
    if (facts.correct) return weighCorrect(policy, facts);
    const result = blank(facts.n);
    if (facts.logpStandard === null) return result;
    const overStandard = Math.log(policy.judge_standard_ratio);
    const leastJudge = Math.fround(policy.min_p_judge);
    for (let t = 0; t < facts.n; t++) {
      const isOrigin =
        ratioExceeds(facts.logpJudge, facts.logpStandard, overStandard, t) &&
        Math.fround(Math.exp(facts.logpJudge[t])) > leastJudge;
      if (isOrigin) {
        result.saliency[t] = 1;
        result.weight[t] = policy.origin_weight;
        break;
      }
      result.weight[t] = power(facts.logpStandard, policy.incorrect_exponent, 0, t);
    }
    return signed(result, result.saliency);
  }

  function cut(policy, facts) {
    const result = blank(facts.n);
    result.weight.fill(1);
    if (facts.logpJudge === null) return signed(result);
    const overBase = Math.log(policy.judge_base_ratio);
    for (let t = 0; t < facts.n; t++) {
      if (!ratioExceeds(facts.logpJudge, facts.logpBase, overBase, t)) continue;
      result.saliency[t] = 1;
      result.weight[t] = policy.unlikelihood_weight;
    }
    return signed(result, result.saliency);
  }

  function rft(policy, facts) {
    const result = blank(facts.n);
    result.weight.fill(facts.correct ? 1 : 0);
    return signed(result);
  }

  const RULES = {
    nlft: saliencyRule,
    released: saliencyRule,
    origin,
    cut,
    rft,
    sft: (policy, facts) => blank(facts.n), // trains the standard answer's tokens, not the response's
  };

  return { names: Object.keys(RULES), weigh: (policy, facts) => RULES[policy.name](policy, facts), cosine };
})();
