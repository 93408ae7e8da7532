// The facts of all examples, unpacked from the page, and the weights that a policy gives them.
const Data = (() => {
  "use strict";

  function readJson(id) {
    return JSON.parse(document.getElementById(id).textContent);
  }

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  // base64 → inflate → regroup (all first bytes, then all second bytes, … → numbers)
  async function unpack(base64, Kind) {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const grouped = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = grouped.length / 4;
    const bytes = new Uint8Array(grouped.length);
    for (let byte = 0; byte < 4; byte++) {
      for (let i = 0, from = byte * count; i < count; i++) bytes[4 * i + byte] = grouped[from + i];
    }
    return new Kind(bytes.buffer); // little-endian, as every machine that runs a browser is
  }

  const INTEGERS = ["top", "role"];

  async function unpackColumns(packed) {
    const unpackOne = async (name) => [name, await unpack(packed[name], INTEGERS.includes(name) ? Int32Array : Float32Array)];
    return Object.fromEntries(await Promise.all(Object.keys(packed).map(unpackOne)));
  }

  async function unpackSet(set) {
    const columns = await unpackColumns(set.columns);
    const weighed = Object.entries(set.weights);
    for (const [, weights] of weighed) weights.columns = await unpackColumns(weights.columns);
    set.columns = null; // the text is not needed any more
    let start = 0;
    set.examples.forEach((example, index) => {
      const stop = start + example.tokens.length;
      example.facts = factsOf(example, columns, start, set.window);
      example.weighed = Object.fromEntries(weighed.map(([policy, weights]) => [policy, resultOf(weights, index, start, stop)]));
      example.set = set;
      start = stop;
    });
    return set;
  }

  // What Python made of an example under a policy that has no formulas here, in the form of Policies.weigh.
  function resultOf(weights, index, start, stop) {
    const part = (column) => weights.columns[column].subarray(start, stop);
    const role = [...part("role")].map((number) => weights.roles[number]);
    const sign = Int8Array.from(role, (name) => ({ losing: -1, silent: 0 })[name] ?? 1);
    return { weight: part("weight"), anchor: part("anchor"), sign, role, growthTruncated: weights.growth_truncated[index] };
  }

  function factsOf(example, columns, start, window) {
    const n = example.tokens.length;
    const part = (name, width = 1) => columns[name].subarray(start * width, (start + n) * width);
    return {
      correct: example.correct,
      n,
      window,
      logpBase: part("logp_base"),
      logpJudge: example.correct ? null : part("logp_judge"),
      logpStandard: example.standard ? part("logp_standard") : null,
      pStandard: example.standard && example.correct ? part("p_standard") : null,
      hiddenNorm: part("hidden_norm"),
      hiddenCos: part("hidden_cos", window),
      top: part("top"),
      topLogp: part("top_logp_standard"),
    };
  }

  // Weigh one example, and count what the list filters and sorts by.
  function weigh(policy, example) {
    const result = example.weighed[policy.name] ?? Policies.weigh(policy, example.facts);
    let losing = 0;
    let scoring = 0;
    let strongest = 0;
    for (let t = 0; t < example.facts.n; t++) {
      if (result.role[t] === "losing") {
        losing++;
        strongest = Math.max(strongest, result.weight[t]);
      } else if (result.role[t] === "scoring") scoring++;
    }
    example.result = result;
    example.losing = losing;
    example.scoring = scoring;
    example.strongest = strongest;
  }

  return { readJson, unpackSet, weigh };
})();
