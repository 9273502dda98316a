// What single keys do, and the page that says so. They can be switched off, for who speaks to the browser.

import { el } from "./dom.js";

const KEYS = {
  j: ["next", "next episode"],
  k: ["previous", "previous episode"],
  f: ["failure", "next failure"],
  b: ["beside", "the next episode of the same task beside this one"],
  s: ["shade", "shade tokens by the next figure"],
  n: ["numbers", "figures below the tokens"],
  l: ["list", "the list of episodes"],
  Escape: ["back", "back: from an episode to the list, from there to the overview"],
};
let enabled = true;

// Do what a key stands for in the view that is open; `moves` holds what the view can do.
export function onKey(event, moves) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (!enabled || typing || event.ctrlKey || event.metaKey || event.altKey || document.getElementById("keys").open)
    return;
  if (event.key === "?") document.getElementById("keys").showModal();
  else if (event.key === "/" && document.getElementById("words")) document.getElementById("words").focus();
  else {
    const [name] = KEYS[event.key] || [];
    if (!name || !moves[name]) return;
    moves[name]();
  }
  event.preventDefault();
}

export function keysDialog(live) {
  const on = el("input", {
    type: "checkbox",
    checked: true,
    onchange: (event) => {
      enabled = event.target.checked;
    },
  });
  const rows = [
    ...Object.entries(KEYS).map(([key, [, words]]) => [key === "Escape" ? "Esc" : key, words]),
    ["/", "words to look for"],
    ["?", "this list"],
  ];
  return el(
    "dialog",
    { id: "keys", "aria-labelledby": "keys-title" },
    el("h2", { id: "keys-title" }, "Keys"),
    el(
      "dl",
      { class: "keys" },
      rows.map(([key, words]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, words))),
    ),
    el("label", { class: "check" }, on, "Keys are on"),
    live && el("p", { class: "soft" }, "The page follows a run that is still going: it looks every three seconds."),
    el("form", { method: "dialog" }, el("button", {}, "Close")),
  );
}
