// The list of episodes and its filters; what is chosen stands in the address, so that it can be kept and sent.

import { el, figure, hidden, plural } from "./dom.js";
import { address, origin } from "./episodes.js";

const PAGE = 100;

export function listView(run, data, episodes, shown, parameters, go) {
  const choose = (name) => (event) => go(address(run, "episodes", { ...parameters, [name]: event.target.value }));
  const one = (name, title, options) =>
    el(
      "label",
      {},
      title,
      el(
        "select",
        { id: `by-${name}`, onchange: choose(name) },
        el("option", { value: "" }, "all"),
        options.map(([value, words, count]) =>
          el("option", { value, selected: parameters[name] === value }, `${words} (${count})`),
        ),
      ),
    );
  const counted = (key) => {
    const counts = new Map();
    for (const episode of episodes) counts.set(key(episode), (counts.get(key(episode)) || 0) + 1);
    return [...counts].map(([value, count]) => [value, value, count]).filter(([value]) => value);
  };
  const won = episodes.filter((episode) => episode.won).length;
  const why = Object.entries(data.failures)
    .map(([name, words]) => [name, words, episodes.filter((each) => each.failure === name).length])
    .filter(([, , count]) => count);
  const words = el("input", {
    type: "search",
    id: "words",
    value: parameters.words || "",
    autocomplete: "off",
    spellcheck: "false",
  });
  const form = el(
    "form",
    {
      class: "filters",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        go(address(run, "episodes", { ...parameters, words: words.value.trim() }));
      },
    },
    one("outcome", "Outcome", [
      ["won", "won", won],
      ["lost", "lost", episodes.length - won],
    ]),
    one("why", "Why it failed", why),
    one("type", "Type of task", counted((episode) => episode.kind).sort()),
    one("from", "Played in", counted(origin)),
    el("label", { class: "words" }, "Words in it", words),
    el("button", { type: "submit" }, "Search"),
    Object.keys(parameters).length > 0 && el("a", { href: address(run, "episodes") }, "Show all"),
  );
  const list = el("ol", { class: "list" });
  const more = el("button", { type: "button", onclick: () => extend() });
  const extend = () => {
    const from = list.children.length;
    const added = shown.slice(from, from + PAGE).map((episode) => item(run, data, episode, parameters));
    list.append(...added);
    if (from && added[0]) added[0].querySelector("a").focus();
    more.hidden = list.children.length >= shown.length;
    more.textContent = `Show ${Math.min(PAGE, shown.length - list.children.length)} more of ${shown.length}`;
  };
  extend();
  const count =
    shown.length === episodes.length
      ? plural(shown.length, "episode")
      : `${shown.length} of ${plural(episodes.length, "episode")}`;
  return [
    el("h1", { tabindex: -1 }, "Episodes", el("span", { class: "pill" }, count)),
    form,
    shown.length
      ? list
      : el("p", {}, episodes.length ? "No episode is like that." : "No episode has been written down yet."),
    more,
  ];
}

function item(run, data, episode, parameters) {
  const result = episode.won ? "won" : "lost";
  const marks = [
    plural(episode.turns, "turn"),
    episode.score !== null && episode.score !== Number(episode.won) && `return ${figure(episode.score)}`,
  ];
  return el(
    "li",
    {},
    el(
      "a",
      { href: address(run, "episode", parameters, episode.id) },
      el(
        "span",
        { class: `outcome ${result}` },
        el("span", { "aria-hidden": "true" }, episode.won ? "✓" : "✗"),
        hidden(result),
      ),
      el("span", { class: "goal" }, episode.goal || episode.task || "episode"),
      el("span", { class: "why" }, episode.won ? "" : data.failures[episode.failure]),
      el(
        "span",
        { class: "soft about" },
        [episode.kind, origin(episode), episode.member ? `member ${episode.member}` : "", ...marks]
          .filter(Boolean)
          .join(" · "),
      ),
    ),
  );
}
