// Tokens shaded by a figure. The colour is never all that says it: each token has its figure as a title and, on demand, below.

import { chance, el, figure } from "./dom.js";

const MODES = {
  "": "nothing",
  probability: "probability",
  entropy: "entropy",
};

// The figures that a set of episodes has, with the titles for the menu; what is not recorded is said there.
export function modes(episodes) {
  const steps = episodes.flatMap((episode) => episode.steps);
  const named = new Set(steps.flatMap((step) => Object.keys(step.advantages || {})));
  const found = Object.entries(MODES).map(([name, title]) => ({
    name,
    title,
    known: name === "" || steps.some((step) => values(step, name)),
  }));
  if (!named.size) found.push({ name: "advantage", title: "advantage", known: false });
  return [...found, ...[...named].map((name) => ({ name, title: name, known: true }))];
}

// One figure for each token of a step's response, or null where it was not recorded.
export function values(step, mode) {
  if (mode === "probability") {
    if (step.logprob) return step.logprob.map((value) => (value === null ? null : Math.exp(value)));
    return step.probability === null ? null : [step.probability];
  }
  if (mode === "entropy") return step.entropy || null;
  const advantage = (step.advantages || {})[mode];
  return advantage === undefined ? null : (step.tokens || [step.action]).map(() => advantage);
}

export function largest(episodes, mode) {
  const all = episodes.flatMap((episode) => episode.steps.flatMap((step) => values(step, mode) || []));
  return Math.max(1e-9, ...all.map((value) => Math.abs(value || 0)));
}

// The response of a step in tokens. Without figures for each token the whole command is one.
export function tokens(step, mode, scale, numbers) {
  const known = mode ? values(step, mode) : null;
  const texts = step.tokens && known && known.length === step.tokens.length ? step.tokens : [step.action];
  return el(
    "span",
    { class: "tokens" },
    texts.map((text, index) => {
      const value = known && known.length === texts.length ? known[index] : null;
      if (value === null || value === undefined) return el("span", { class: "token" }, text || "\u23ce");
      const words = mode === "probability" ? chance(value) : figure(value);
      const token = el(
        "span",
        { class: `token shaded ${tone(mode, value)}`, title: `${mode}: ${words}` },
        text || "\u23ce",
        numbers && el("span", { class: "number" }, words),
      );
      token.style.setProperty("--strength", `${Math.round(100 * strength(mode, value, scale))}%`);
      return token;
    }),
  );
}

function tone(mode, value) {
  return mode.startsWith("advantage") && value > 0 ? "good" : mode.startsWith("advantage") ? "bad" : "odd";
}

// How strongly a token is shaded, 0 to 1: an unlikely one, an uncertain one, one far from the mean of its group.
function strength(mode, value, scale) {
  return Math.min(1, mode === "probability" ? 1 - value : Math.abs(value) / scale);
}
