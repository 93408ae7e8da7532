// Small helpers: elements are built from text nodes alone, never from markup.
const Dom = (() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const find = (id) => document.getElementById(id);

  // Characters that have no picture of their own, or that turn the text around them.
  const UNSEEN = /[\u0000-\u0009\u000a-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/u;

  function nameOf(character) {
    const code = character.codePointAt(0);
    if (code === 10) return "↵";
    if (code === 9) return "⇥";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    if (code === 127) return "␡";
    return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  }

  // The text as nodes. Unseen characters get a visible name by CSS; the characters themselves stay in the text.
  function visible(text) {
    if (!UNSEEN.test(text)) return [document.createTextNode(text)];
    const nodes = [];
    let plain = "";
    const flush = () => {
      if (plain) nodes.push(document.createTextNode(plain));
      plain = "";
    };
    for (const character of text) {
      if (!UNSEEN.test(character)) {
        plain += character;
        continue;
      }
      flush();
      const breaks = character === "\n" || character === "\t";
      const inner = breaks ? document.createTextNode(character) : make("span", { hidden: true }, character);
      nodes.push(make("span", { class: "unseen", "data-name": nameOf(character) }, inner));
    }
    flush();
    return nodes;
  }

  // A token in running words: quoted, with what cannot be seen named.
  function quoted(text) {
    if (text === "") return "(part of the next character)";
    const shown = [...text].map((c) => (UNSEEN.test(c) ? nameOf(c) : c)).join("").trim();
    return `“${shown || "␣"}”`;
  }

  function percent(p) {
    if (p === null || Number.isNaN(p)) return "–";
    const value = 100 * p;
    if (value >= 99.95 && p < 1) return "over 99.9\u00a0%";
    if (value > 0 && value < 0.01) return "under 0.01\u00a0%";
    if (value === 0) return "0\u00a0%";
    return `${value < 1 ? value.toFixed(2) : value.toFixed(1)}\u00a0%`;
  }

  function times(ratio) {
    if (ratio === null || Number.isNaN(ratio)) return "–";
    if (ratio >= 10000) return "over 10,000\u00a0×";
    return `${ratio >= 100 ? Math.round(ratio).toLocaleString("en") : ratio >= 0.01 ? ratio.toPrecision(3) : ratio.toExponential(0)}\u00a0×`;
  }

  return { make, draw, find, visible, quoted, percent, times };
})();
