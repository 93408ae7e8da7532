// The form of a policy's numbers, made from the fields that Python described.
const Panel = (() => {
  "use strict";
  const { make, find } = Dom;

  // What people turn first stands on top; everything else opens below.
  const FIRST = ["theta", "tau", "judge_base_ratio", "judge_standard_ratio", "min_p_judge", "max_losing_share",
    "growing", "growing_metric", "growing_threshold"];
  const GREEK = { theta: "θ  theta", tau: "τ  tau" };

  let policies = {};
  let values = {}; // the policy that is set: name, and a valid value for each field
  let changed = () => {};
  let settled = () => {};

  function start(described, onChange, onSettled) {
    policies = described;
    changed = onChange;
    settled = onSettled;
    find("policy-name").append(...Object.keys(policies).map((name) => make("option", { value: name }, name)));
    find("policy-name").addEventListener("change", (event) => choose(event.target.value, {}));
    find("policy-reset").addEventListener("click", () => choose(values.name, {}));
  }

  // Set a policy; numbers that are not given take their defaults, wrong ones too. Those of a policy without formulas in
  // the page are fixed: they are the ones that Python weighed with.
  function choose(name, given) {
    if (!Object.hasOwn(policies, name)) name = "nlft";
    values = policies[name].fixed?.values ?? { name };
    for (const field of policies[name].fixed ? [] : policies[name].fields) {
      const value = Object.hasOwn(given, field.name) ? given[field.name] : field.default;
      values[field.name] = problem(field, value) === null ? value : field.default;
    }
    find("policy-name").value = name;
    find("policy-summary").textContent = policies[name].summary;
    draw();
    changed();
    settled();
  }

  function draw() {
    const { fields, fixed } = policies[values.name];
    find("fixed-note").hidden = !fixed;
    find("policy-reset").hidden = !!fixed;
    const rank = (field) => (FIRST.includes(field.name) ? FIRST.indexOf(field.name) : FIRST.length);
    const sorted = [...fields].sort((a, b) => rank(a) - rank(b));
    const first = sorted.filter((field) => rank(field) < FIRST.length);
    const rest = sorted.filter((field) => rank(field) === FIRST.length);
    find("policy-fields").replaceChildren(...first.map(fixed ? stated : control));
    find("policy-rest").replaceChildren(...rest.map(fixed ? stated : control));
  }

  // A number that cannot be turned.
  function stated(field) {
    const value = make("code", {}, `${field.name}: ${JSON.stringify(values[field.name])}`);
    return make("div", { class: "field" }, value, make("p", { class: "help" }, field.description));
  }

  function control(field) {
    const id = `field-${field.name}`;
    const help = make("p", { id: `${id}-help`, class: "help" }, field.description);
    const label = make("label", { for: id }, GREEK[field.name] ?? field.name);
    const inputs = { number: numberInputs, switch: switchInput, choice: choiceInput }[field.kind](field, id);
    return make("div", { class: `field ${field.kind}` }, label, ...inputs, help);
  }

  function switchInput(field, id) {
    const input = make("input", { id, type: "checkbox", "aria-describedby": `${id}-help` });
    input.checked = values[field.name];
    input.addEventListener("change", () => set(field, input.checked, true));
    return [input];
  }

  function choiceInput(field, id) {
    const options = field.choices.map((choice) => make("option", { value: choice }, choice));
    const input = make("select", { id, "aria-describedby": `${id}-help` }, ...options);
    input.value = values[field.name];
    input.addEventListener("change", () => set(field, input.value, true));
    return [input];
  }

  function numberInputs(field, id) {
    const [low, high] = sliderRange(field);
    const exact = make("input", { id, type: "number", step: "any", value: values[field.name], "aria-describedby": `${id}-help` });
    const slider = make("input", { type: "range", min: low, max: high, step: (high - low) / 400, "aria-label": `${field.name}, slider` });
    slider.value = values[field.name];
    slider.addEventListener("input", () => {
      const value = Number(Number(slider.value).toPrecision(4));
      exact.value = value;
      report(exact, set(field, value, false));
    });
    slider.addEventListener("change", () => settled());
    exact.addEventListener("input", () => {
      const wrong = set(field, exact.value.trim() === "" ? NaN : Number(exact.value), false);
      report(exact, wrong);
      if (wrong === null) slider.value = exact.value;
    });
    exact.addEventListener("change", () => settled());
    return [slider, exact];
  }

  function report(input, wrong) {
    input.setCustomValidity(wrong ?? "");
    input.setAttribute("aria-invalid", wrong === null ? "false" : "true");
    input.title = wrong ?? "";
  }

  // The slider covers the useful part of an open range; the number field takes any allowed value.
  function sliderRange(field) {
    const { gt, ge, lt, le } = field.bounds;
    const step = 0.001;
    if (field.name === "growing_threshold") return [-1, 2];
    const low = ge ?? (gt === undefined ? 0 : gt + step);
    const high = le ?? (lt === undefined ? Math.max(3 * field.default, 3) : lt - step);
    return [low, high];
  }

  function problem(field, value) {
    if (field.kind === "switch") return typeof value === "boolean" ? null : "must be true or false";
    if (field.kind === "choice") return field.choices.includes(value) ? null : `must be one of ${field.choices.join(", ")}`;
    if (typeof value !== "number" || !Number.isFinite(value)) return "must be a number";
    const { gt, ge, lt, le } = field.bounds;
    if (gt !== undefined && !(value > gt)) return `must be above ${gt}`;
    if (ge !== undefined && !(value >= ge)) return `must be at least ${ge}`;
    if (lt !== undefined && !(value < lt)) return `must be below ${lt}`;
    if (le !== undefined && !(value <= le)) return `must be at most ${le}`;
    return null;
  }

  function set(field, value, isSettled) {
    const wrong = problem(field, value);
    if (wrong !== null) return wrong;
    values = { ...values, [field.name]: value };
    changed();
    if (isSettled) settled();
    return null;
  }

  // As `nlft-ray train` reads it: every number, so that a later default changes nothing.
  function yaml() {
    if (policies[values.name].fixed) return policies[values.name].fixed.yaml;
    const scalar = (value) => (typeof value === "number" && Number.isInteger(value) ? value.toFixed(1) : String(value));
    const lines = policies[values.name].fields.map((field) => `  ${field.name}: ${scalar(values[field.name])}`);
    return ["policy:", `  name: ${values.name}`, ...lines, ""].join("\n");
  }

  // What differs from the defaults, for the address.
  function toQuery(query) {
    query.set("policy", values.name);
    for (const field of policies[values.name].fixed ? [] : policies[values.name].fields) {
      if (values[field.name] !== field.default) query.set(field.name, String(values[field.name]));
    }
  }

  function fromQuery(query, otherwise) {
    const name = query.get("policy");
    if (name === null) return choose(otherwise.name, otherwise);
    const given = {};
    const known = Object.hasOwn(policies, name) ? policies[name].fields : [];
    for (const field of known) {
      const text = query.get(field.name);
      if (text === null) continue;
      given[field.name] = field.kind === "number" ? Number(text) : field.kind === "switch" ? text === "true" : text;
    }
    return choose(name, given);
  }

  function defaults(name) {
    return Object.fromEntries([["name", name], ...policies[name].fields.map((field) => [field.name, field.default])]);
  }

  return { start, choose, defaults, yaml, toQuery, fromQuery, policy: () => values, target: () => policies[values.name].target };
})();
