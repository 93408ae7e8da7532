// The examples: which are listed, in which order, and the cards of those that are near the screen.
const List = (() => {
  "use strict";
  const { make, find, visible, quoted } = Dom;

  const SORTS = {
    table: (a, b) => a.number - b.number,
    losing: (a, b) => Number(b.losing > 0) - Number(a.losing > 0) || b.strongest - a.strongest || a.number - b.number,
    most: (a, b) => b.losing - a.losing || a.number - b.number,
    length: (a, b) => b.facts.n - a.facts.n || a.number - b.number,
  };

  let examples = [];
  let second = new Map(); // id → example of the second set
  let ordered = [];
  let listed = []; // what the filters let through, in order
  let current = null;
  let filters = { verdict: "all", text: "", least: 0, sort: "losing", view: "many" };
  let observer = null;
  const drawn = new Set();

  function start(first, compared) {
    examples = first.examples;
    if (compared) second = new Map(compared.examples.map((example) => [example.id, example]));
    observer = new IntersectionObserver(onSight, { rootMargin: "900px 0px" });
    examples.forEach((example, index) => {
      example.number = index + 1;
      example.other = second.get(example.id) ?? null;
      const texts = [example.id, example.question, example.judgment, example.standard_answer, example.tokens.join("")];
      example.haystack = texts.filter(Boolean).join("\n").toLowerCase();
      example.card = make("li", { class: `card ${example.correct ? "correct" : "incorrect"}`, tabindex: "-1" });
      example.card.example = example;
      observer.observe(example.card);
    });
  }

  function all() {
    return examples.concat([...second.values()]);
  }

  // Draw what comes near the screen, clear what is far from it; a cleared card keeps its height.
  function onSight(entries) {
    for (const entry of entries) {
      const card = entry.target;
      if (entry.isIntersecting) drawCard(card.example);
      else if (drawn.has(card.example)) {
        if (card.contains(document.activeElement)) continue;
        if (card.offsetHeight) card.style.setProperty("--height", `${card.offsetHeight}px`);
        card.replaceChildren();
        drawn.delete(card.example);
      }
    }
  }

  function drawCard(example) {
    if (drawn.has(example)) return;
    drawn.add(example);
    example.card.style.removeProperty("--height");
    example.card.replaceChildren(...cardContents(example).filter(Boolean));
    summarise(example);
  }

  function cardContents(example) {
    const verdict = example.correct ? "✓ correct" : "✗ incorrect";
    const boxes = [side(example, second.size ? example.set.name : null)];
    if (example.other) boxes.push(side(example.other, example.other.set.name));
    else if (second.size) boxes.push(make("p", { class: "absent" }, "Not in the second table."));
    return [
      make("h3", { class: "name" },
        make("span", { class: "verdict" }, verdict),
        make("span", { class: "place" }, ` ${example.number} · `, make("code", {}, ...visible(example.id)))),
      line("Question", (example.instruction ? `${example.instruction}\n` : "") + example.question),
      example.standard_answer === null || example.standard_answer === undefined
        ? null : line("Standard answer", example.standard_answer),
      make("div", { class: `sides ${boxes.length > 1 ? "two" : ""}` }, ...boxes),
      example.judgment ? line("Judgment", example.judgment) : null,
    ];
  }

  function side(example, heading) {
    const verdict = example.correct ? "✓ correct" : "✗ incorrect";
    const box = make("div", { class: "side" });
    if (heading) box.append(make("h4", {}, `${heading} · ${verdict}`));
    const note = make("p", { class: "count" });
    box.append(make("span", { class: "label" }, "Response"), Tokens.response(example), note);
    example.note = note;
    if (heading && example.judgment && example.other === undefined) box.append(line("Judgment", example.judgment));
    return box;
  }

  function line(name, text) {
    return make("div", { class: `line ${name.toLowerCase().replace(" ", "-")}` },
      make("span", { class: "label" }, name), make("div", { class: "text", dir: "auto" }, ...visible(text)));
  }

  // The salient tokens in words, for those who do not see the colours.
  function summarise(example) {
    for (const one of [example, example.other]) {
      if (one) one.note.textContent = inWords(one);
    }
  }

  function inWords(example) {
    if (example.correct) return `${example.scoring} scoring of ${example.facts.n} tokens`;
    const losing = example.tokens.filter((_, t) => example.result.sign[t] < 0);
    const named = losing.slice(0, 4).map(quoted).join(", ") + (losing.length > 4 ? ", …" : "");
    return losing.length ? `${losing.length} losing of ${example.facts.n} tokens: ${named}` : "no losing token";
  }

  function repaint() {
    for (const example of drawn) {
      example.card.querySelectorAll(".response").forEach(Tokens.paint);
      summarise(example);
    }
  }

  function passes(example) {
    const { verdict, text, least } = filters;
    if (verdict !== "all" && example.correct !== (verdict === "correct")) return false;
    if (example.losing < least) return false;
    return text === "" || example.haystack.includes(text.toLowerCase());
  }

  // Filter and sort anew. Moving a slider filters, but sorts only when it is let go.
  function refresh(resort) {
    const order = resort || !listed.length ? [...examples].sort(SORTS[filters.sort] ?? SORTS.table) : ordered;
    ordered = order;
    const now = order.filter(passes);
    const same = now.length === listed.length && now.every((example, i) => example === listed[i]);
    listed = now;
    if (!listed.includes(current)) current = listed[0] ?? null;
    if (!same || resort) find("examples").replaceChildren(...listed.map((example) => example.card));
    showView();
  }

  function showView() {
    const single = filters.view === "one";
    const list = find("examples");
    if (list.dataset.view !== filters.view) {
      list.dataset.view = filters.view;
      for (const example of examples) example.card.style.removeProperty("--height"); // it was another view's
    }
    for (const example of listed) {
      example.card.hidden = single && example !== current;
      example.card.classList.toggle("current", example === current);
    }
    const place = listed.indexOf(current) + 1;
    find("shown-count").textContent = listed.length
      ? `${listed.length} of ${examples.length} examples · at ${place}` : `none of ${examples.length} examples`;
  }

  function step(by) {
    if (!listed.length) return;
    const next = Math.max(0, Math.min(listed.length - 1, listed.indexOf(current) + by));
    goTo(listed[next]);
  }

  function goTo(example) {
    if (!example) return;
    current = example;
    showView();
    drawCard(example);
    example.card.focus({ preventScroll: true });
    example.card.scrollIntoView({ block: "start" });
  }

  return {
    SORTS, start, all, refresh, repaint, step, goTo,
    filters: () => filters,
    filter: (changes) => (filters = { ...filters, ...changes }),
    current: () => current,
    listed: () => listed,
    byId: (id) => examples.find((example) => example.id === id) ?? null,
  };
})();
