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

  async function unpackSet(set) {
    const names = Object.keys(set.columns);
    const unpacked = await Promise.all(
      names.map((name) => unpack(set.columns[name], name === "top" ? Int32Array : Float32Array)),
    );
    const columns = Object.fromEntries(names.map((name, i) => [name, unpacked[i]]));
    set.columns = null; // the text is not needed any more
    let start = 0;
    for (const example of set.examples) {
      example.facts = factsOf(example, columns, start, set.window);
      example.set = set;
      start += example.tokens.length;
    }
    return set;
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
    const result = Policies.weigh(policy, example.facts);
    let losing = 0;
    let scoring = 0;
    let strongest = 0;
    for (let t = 0; t < example.facts.n; t++) {
      const role = Policies.role(result, t);
      if (role === "losing") {
        losing++;
        strongest = Math.max(strongest, result.weight[t]);
      } else if (role === "scoring") scoring++;
    }
    example.result = result;
    example.losing = losing;
    example.scoring = scoring;
    example.strongest = strongest;
  }

  return { readJson, unpackSet, weigh };
})();
