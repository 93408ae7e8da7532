// The page: reads the data, wires the controls, keeps the address in step.
(() => {
  "use strict";
  const { make, draw, find, quoted, percent } = Dom;
  const BINS = 40;
  const OPTIONS = ["verdict", "text", "least", "sort", "view"];
  const DEFAULTS = { verdict: "all", text: "", least: 0, sort: "losing", view: "many" };
  let opening = null; // the policy to begin with
  let pending = false;
  let ready = false;
  let written = null; // the address as this page wrote it last

  async function start() {
    const data = Data.readJson("report-data");
    if (!data.sets.length) return;
    opening = data.policy;
    const sets = await Promise.all(data.sets.map(Data.unpackSet));
    Tokens.listen();
    List.start(sets[0], sets[1]);
    Panel.start(data.policies, () => (ready ? later() : null), settle);
    listen();
    if (matchMedia("(max-width: 56rem)").matches) find("panel").open = false;
    readAddress();
    drawHero();
    find("map").classList.remove("waiting");
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  }

  // --- weights ----------------------------------------------------------------------------------------------

  function later() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      update(false);
    });
  }

  function update(resort) {
    const began = performance.now();
    const policy = Panel.policy();
    Tokens.use(policy);
    for (const example of List.all()) Data.weigh(policy, example);
    List.refresh(resort);
    List.repaint();
    drawHistogram();
    find("yaml").value = Panel.yaml();
    find("target-note").hidden = Panel.target() === "response";
    document.documentElement.dataset.updateMs = (performance.now() - began).toFixed(1);
  }

  function settle() {
    if (!ready) return;
    update(true);
    writeAddress();
  }

  // --- shares and histogram ---------------------------------------------------------------------------------

  function tally() {
    const bins = new Float64Array(2 * BINS + 1); // lowered to the left, raised to the right, left alone in the middle
    const count = { correct: 0, incorrect: 0, losing: 0, scoring: 0, silent: 0, cut: 0 };
    let top = 2;
    const shown = List.listed();
    for (const { result } of shown) for (const weight of result.weight) top = Math.max(top, weight);
    for (const example of shown) {
      const { weight, sign } = example.result;
      count[example.correct ? "correct" : "incorrect"] += example.facts.n;
      count.losing += example.losing;
      count.scoring += example.scoring;
      count.cut += example.result.growthTruncated;
      for (let t = 0; t < weight.length; t++) {
        if (sign[t] === 0) count.silent++;
        const bin = Math.min(BINS, Math.ceil((weight[t] / top) * BINS));
        bins[BINS + sign[t] * bin]++;
      }
    }
    return { bins, count, top };
  }

  function drawHistogram() {
    const { bins, count, top } = tally();
    const tokens = count.correct + count.incorrect;
    const highest = Math.log1p(Math.max(...bins));
    const width = 300 / bins.length;
    const bars = [...bins].map((amount, i) => {
      const height = highest ? (80 * Math.log1p(amount)) / highest : 0;
      const kind = i < BINS ? "lowered" : i > BINS ? "raised" : "silent";
      return draw("rect", { class: kind, x: i * width, y: 80 - height, width: width * 0.85, height });
    });
    find("histogram").replaceChildren(
      ...bars, draw("line", { class: "axis", x1: 0, x2: 300, y1: 80.5, y2: 80.5 }),
      ...[[0, `lowered, ${top.toFixed(1)}`, "start"], [150, "0", "middle"], [300, `raised, ${top.toFixed(1)}`, "end"]]
        .map(([x, text, anchor]) => draw("text", { x, y: 94, "text-anchor": anchor }, text)));
    const share = (part, whole) => (whole ? percent(part / whole) : "–");
    find("share-losing").textContent = share(count.losing, count.incorrect);
    find("share-scoring").textContent = share(count.scoring, count.correct);
    find("share-silent").textContent = share(count.silent, tokens);
    find("growth-cut").textContent = String(count.cut);
    find("histogram").setAttribute("aria-label",
      `Histogram of the weights of ${tokens} tokens: ${count.losing} lowered, ${count.silent} left alone`);
  }

  // --- the first example, told in words ---------------------------------------------------------------------

  // The clearest example: few losing tokens, and one that the right answer would have prevented. It keeps the weights
  // of the policy that the page opens with, or of the default one where that finds no losing token.
  function clearest() {
    for (const policy of [opening, Panel.defaults("nlft"), Panel.defaults("origin")]) {
      let best = null;
      for (const { ...example } of List.all()) {
        if (example.correct) continue;
        example.policy = policy;
        Data.weigh(policy, example);
        for (let t = 0; t < example.facts.n; t++) {
          if (example.result.sign[t] >= 0) continue;
          const { judge, standard, base } = Reasons.factsAt(example, t);
          const clear = judge - (standard ?? base) - 0.5 * (example.losing - 1);
          if (best === null || clear > best.clear) best = { example, t, clear };
        }
      }
      if (best) return best;
    }
    return null;
  }

  function drawHero() {
    const found = clearest();
    const hero = find("hero");
    if (!found) return;
    const { example, t } = found;
    const { base, judge, standard, topText, topP } = Reasons.factsAt(example, t);
    const fact = (name, text) => make("div", { class: "line" },
      make("span", { class: "label" }, name), make("div", { class: "text", dir: "auto" }, ...Dom.visible(text)));
    const token = make("mark", { dir: "auto" }, quoted(example.tokens[t]));
    const story = [
      "The answer is wrong, and one token carried the mistake: ", token,
      `. Unprompted, the model gave it ${percent(base)}; asked to make the mistake that the judgment names, ${percent(judge)}`,
      standard === null ? "." : `; with the right answer in view, ${percent(standard)}`,
      topText === null || topText === example.tokens[t] ? (standard === null ? "" : ".") :
        `, and it would have put ${quoted(topText)} (${percent(topP)}).`,
      " So training makes this token less likely here.",
    ];
    hero.append(
      fact("Question", example.question),
      example.standard_answer ? fact("Right answer", example.standard_answer) : "",
      make("div", { class: "line" }, make("span", { class: "label" }, "Model’s response"), Tokens.response(example)),
      example.judgment ? fact("Judgment", example.judgment) : "",
      make("p", { class: "story" }, ...story));
    hero.hidden = false;
  }

  // --- controls and address ---------------------------------------------------------------------------------

  function listen() {
    for (const name of OPTIONS) {
      find(`filter-${name}`).addEventListener("input", (event) => {
        List.filter({ [name]: name === "least" ? Math.max(0, Number(event.target.value) || 0) : event.target.value });
        List.refresh(true);
        drawHistogram();
        writeAddress();
      });
    }
    find("next").addEventListener("click", () => step(1));
    find("previous").addEventListener("click", () => step(-1));
    find("copy-yaml").addEventListener("click", (event) => copy(Panel.yaml(), event.currentTarget));
    find("copy-link").addEventListener("click", (event) => copy(location.href, event.currentTarget));
    find("theme").addEventListener("click", toggleTheme);
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", () => location.hash !== written && readAddress());
    for (const link of document.querySelectorAll("a[data-section]")) {
      link.addEventListener("click", (event) => {
        event.preventDefault(); // the address holds the setting
        const section = find(link.dataset.section);
        section.scrollIntoView();
        section.focus({ preventScroll: true });
      });
    }
  }

  function step(by) {
    List.step(by);
    writeAddress();
  }

  function onKey(event) {
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j" || event.key === "n") step(1);
    else if (event.key === "k" || event.key === "p") step(-1);
    else if (event.key === "/") find("filter-text").focus();
    else return;
    event.preventDefault();
  }

  function toggleTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }

  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", {}, text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    find("said").textContent = `${button.textContent} – copied`;
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
  }

  function writeAddress() {
    const query = new URLSearchParams();
    Panel.toQuery(query);
    for (const name of OPTIONS) {
      if (List.filters()[name] !== DEFAULTS[name]) query.set(name, String(List.filters()[name]));
    }
    const current = List.current();
    if (current && current !== List.listed()[0]) query.set("example", current.id);
    written = `#${query}`;
    history.replaceState(null, "", written);
  }

  function readAddress() {
    const query = new URLSearchParams(location.hash.slice(1));
    const filters = { ...DEFAULTS };
    for (const name of OPTIONS) {
      const control = find(`filter-${name}`);
      if (query.has(name)) filters[name] = name === "least" ? Math.max(0, Number(query.get(name)) || 0) : query.get(name);
      control.value = filters[name];
      if (control.value === "") control.value = filters[name] = DEFAULTS[name]; // no such choice
    }
    List.filter(filters);
    ready = false;
    Panel.fromQuery(query, opening);
    ready = true;
    update(true);
    if (query.has("example")) List.goTo(List.byId(query.get("example")));
  }

  window.nlft = { Policies, Data, List, Panel }; // for a curious reader's console, and for tests
  start().catch((error) => {
    find("failure").textContent = `The saliency map could not be drawn: ${error.message}`;
    find("failure").hidden = false;
    throw error;
  });
})();
