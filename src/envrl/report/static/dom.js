// Elements from texts and numbers. A text of a run only ever becomes a text node: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Make an element: el("p", {class: "soft"}, "text", other) ; an attribute that begins with "on" is a listener.
export function el(name, attributes = {}, ...children) {
  return made(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return made(document.createElementNS(SVG, name), attributes, children);
}

export function hidden(text) {
  return el("span", { class: "hidden" }, text);
}

// A section with a heading that the page's outline and its links know.
export function section(title, ...children) {
  return el("section", { "aria-labelledby": slug(title) }, el("h2", { id: slug(title) }, title), children);
}

export function slug(text) {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "-");
}

// A table: `head` are the titles of the columns, each row begins with its own title; numbers are aligned right.
export function table(caption, head, rows) {
  const titles = head.map((title) => el("th", { scope: "col" }, title));
  const body = rows.map(([first, ...rest]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, first),
      rest.map((cell) => el("td", {}, cell)),
    ),
  );
  const parts = [
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, titles)),
    el("tbody", {}, body),
  ];
  return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption }, el("table", {}, parts));
}

export function percent(rate, digits = 0) {
  return `${(100 * rate).toFixed(digits)}\u00a0%`;
}

// A probability: more digits where it is small.
export function chance(probability) {
  if (probability === 0 || probability >= 0.0995) return percent(probability);
  return probability >= 0.001 ? percent(probability, 1) : "< 0.1\u00a0%";
}

// A number in at most four characters or so: 12.3k, 0.0123, 3.0e-7.
export function figure(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${trimmed(value / 1e6)}M`;
  if (size >= 1e4) return `${trimmed(value / 1e3)}k`;
  if (size !== 0 && size < 1e-4) return value.toExponential(1);
  return trimmed(value);
}

function trimmed(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
