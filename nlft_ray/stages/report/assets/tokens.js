// A response as tokens, and the details of the one that is pointed at.
const Tokens = (() => {
  "use strict";
  const { make, find, visible } = Dom;
  const narrow = matchMedia("(max-width: 56rem)"); // as in report.css: the details lie at the bottom
  const exampleOf = new WeakMap(); // response element → example
  let policy = null;
  let shown = null; // the token whose details are open

  function response(example) {
    const box = make("div", {
      class: "response",
      dir: "auto",
      role: "listbox",
      "aria-orientation": "horizontal",
      "aria-label": `Response tokens of ${example.id}; arrow keys move between them`,
    });
    example.tokens.forEach((text, t) => {
      const token = make("span", { role: "option", "aria-selected": "false", tabindex: t === 0 ? "0" : "-1" });
      token.append(...(text === "" ? [make("span", { class: "partial", "data-name": "·" })] : visible(text)));
      token.dataset.t = String(t);
      box.append(token);
    });
    exampleOf.set(box, example);
    paint(box);
    return box;
  }

  function paint(box) {
    const example = exampleOf.get(box);
    const { weight, sign, role } = example.result;
    for (let t = 0; t < example.facts.n; t++) {
      const token = box.children[t];
      token.className = `t ${role[t]}`;
      token.style.setProperty("--w", String(sign[t] === 0 ? 0 : Math.min(weight[t] / 2, 1)));
      token.setAttribute("aria-label", Reasons.label(example, t));
    }
  }

  function tokenOf(event) {
    const token = event.target instanceof Element ? event.target.closest(".t") : null;
    return token && exampleOf.has(token.parentElement) ? token : null;
  }

  function show(token) {
    const example = exampleOf.get(token.parentElement);
    const details = find("details");
    if (shown !== token) {
      details.replaceChildren(...Reasons.contents(example.policy ?? policy, example, Number(token.dataset.t)).filter(Boolean));
    }
    hideMark();
    shown = token;
    token.classList.add("shown");
    token.setAttribute("aria-selected", "true");
    token.setAttribute("aria-describedby", "details");
    details.hidden = false;
    const at = token.getBoundingClientRect();
    place(details, at);
    const covered = at.bottom + 12 - details.getBoundingClientRect().top;
    if (narrow.matches && covered > 0) window.scrollBy({ top: covered, behavior: "instant" });
  }

  // Below the token, else above, else beside it; a narrow screen shows the details at its bottom (CSS).
  function place(details, at) {
    const { offsetWidth: width, offsetHeight: height } = details;
    const screen = { width: document.documentElement.clientWidth, height: window.innerHeight };
    const room = { below: screen.height - at.bottom - 16 >= height, above: at.top - 16 >= height };
    let left = at.left - 20;
    let top = room.below ? at.bottom + 8 : at.top - height - 8;
    if (!room.below && !room.above) {
      left = at.right + 12 + width < screen.width ? at.right + 12 : at.left - width - 12;
      top = at.top - height / 2;
    }
    left = Math.max(8, Math.min(left, screen.width - width - 8));
    top = Math.max(8, Math.min(top, screen.height - height - 8));
    details.style.setProperty("--left", `${left}px`);
    details.style.setProperty("--top", `${top}px`);
  }

  function hideMark() {
    if (!shown) return;
    shown.classList.remove("shown");
    shown.setAttribute("aria-selected", "false");
    shown.removeAttribute("aria-describedby");
  }

  function hide() {
    hideMark();
    shown = null;
    find("details").hidden = true;
  }

  function move(token, key) {
    const box = token.parentElement;
    const rtl = getComputedStyle(box).direction === "rtl";
    const next = rtl ? "ArrowLeft" : "ArrowRight";
    const all = box.children;
    const here = Number(token.dataset.t);
    const steps = { Home: -here, End: all.length - 1 - here, ArrowRight: 0, ArrowLeft: 0 };
    if (!(key in steps)) return false;
    const step = key.startsWith("Arrow") ? (key === next ? 1 : -1) : steps[key];
    const target = all[Math.max(0, Math.min(all.length - 1, here + step))];
    token.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
    return true;
  }

  function listen() {
    document.addEventListener("pointerover", (event) => {
      const token = tokenOf(event);
      if (token) show(token);
      else if (shown && event.pointerType === "mouse" && document.activeElement !== shown) hide();
    });
    document.addEventListener("focusin", (event) => {
      const token = tokenOf(event);
      if (token) show(token);
      else if (shown) hide();
    });
    document.addEventListener("click", (event) => {
      const token = tokenOf(event);
      if (token) token.focus();
      else if (shown && !find("details").contains(event.target)) hide();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && shown) hide();
      const token = tokenOf(event);
      if (token && move(token, event.key)) event.preventDefault();
    });
    window.addEventListener("scroll", follow, { passive: true });
  }

  // Scrolling takes hovered details away; those of a focused token stay with it.
  function follow() {
    if (!shown) return;
    if (document.activeElement === shown) place(find("details"), shown.getBoundingClientRect());
    else hide();
  }

  function use(newPolicy) {
    policy = newPolicy;
    if (shown) hide();
  }

  return { response, paint, listen, use };
})();
