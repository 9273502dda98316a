// One episode to read turn by turn, or two of the same task beside each other.

import { chance, el, figure, hidden, plural } from "./dom.js";
import { address, origin } from "./episodes.js";
import { largest, modes, tokens } from "./shade.js";

const STOPS = {
  max_steps: "stopped by the step limit",
  context: "stopped by the context's length",
  "set aside": "left out: its world failed",
};

// `shown`: the episode and, if one was chosen, the other beside it: {row, episode, label}. `around`: its neighbours in the list.
export function readingView({ run, data, shown, around, others, labels, parameters, settings, go, change }) {
  const [{ row }] = shown;
  const link = (other, words, key) =>
    other
      ? el(
          "a",
          {
            class: "button",
            href: address(run, "episode", without(parameters, "beside"), other.id),
            "aria-keyshortcuts": key,
          },
          words,
        )
      : el("span", { class: "button off" }, words);
  const parts = shown.map(({ episode }) => episode);
  const scale = settings.shade ? largest(parts, settings.shade) : 1;
  return [
    el(
      "nav",
      { class: "steps-nav", "aria-label": "Episodes" },
      el("a", { href: address(run, "episodes", without(parameters, "beside")) }, "All episodes"),
      el("span", { class: "soft", id: "position" }, around.index < 0 ? "" : `${around.index + 1} of ${around.count}`),
      link(around.previous, "Previous", "k"),
      link(around.next, "Next", "j"),
      link(around.failure, "Next failure", "f"),
    ),
    el("h1", { tabindex: -1 }, parts[0].goal || row.task),
    el("p", { class: "soft" }, [row.kind, row.task].filter(Boolean).join(" · ")),
    toolbar({ run, row, parts, others, labels, parameters, settings, go, change }),
    legend(settings.shade, parts),
    missing(parts),
    el(
      "div",
      { class: shown.length > 1 ? "sides" : "" },
      shown.map((each) => column(each, data, settings, scale, shown.length > 1)),
    ),
  ];
}

function without(parameters, name) {
  return Object.fromEntries(Object.entries(parameters).filter(([key]) => key !== name));
}

function toolbar({ run, row, parts, others, labels, parameters, settings, go, change }) {
  const shade = el(
    "select",
    { id: "shade", onchange: (event) => change({ shade: event.target.value }) },
    modes(parts).map((mode) =>
      el(
        "option",
        { value: mode.name, selected: mode.name === settings.shade, disabled: !mode.known },
        mode.known ? mode.title : `${mode.title} (not recorded here)`,
      ),
    ),
  );
  const beside = el(
    "select",
    {
      id: "beside",
      onchange: (event) => go(address(run, "episode", { ...parameters, beside: event.target.value }, row.id)),
    },
    el("option", { value: "" }, others.length ? "nothing" : "nothing else of this task was recorded"),
    others.map((other) => {
      const value = `${other.run}:${other.id}`;
      return el(
        "option",
        { value, selected: parameters.beside === value },
        `${labelled(other, labels)} · ${other.won ? "won" : "lost"} in ${other.turns}`,
      );
    }),
  );
  const numbers = el("input", {
    type: "checkbox",
    id: "numbers",
    checked: settings.numbers,
    onchange: (event) => change({ numbers: event.target.checked }),
  });
  return el(
    "div",
    { class: "filters", role: "group", "aria-label": "How it is shown" },
    el("label", {}, "Shade tokens by", shade),
    el("label", { class: "check" }, numbers, "Figures below"),
    el("label", { class: "words" }, "Beside it", beside),
  );
}

function labelled(row, labels) {
  return `${labels.length > 1 ? `${labels[row.run]}: ` : ""}${origin(row)}${row.member ? `, member ${row.member}` : ""}`;
}

function legend(mode, parts) {
  if (!mode) return null;
  const whole =
    mode === "probability" &&
    parts.some((episode) => episode.steps.some((step) => step.probability !== null && !step.logprob));
  const words =
    mode === "probability"
      ? "The less likely a token was when it was sampled, the stronger its colour."
      : mode === "entropy"
        ? "The more uncertain the policy was before a token (entropy, nats), the stronger its colour."
        : "Blue: the update made the token more likely (advantage above 0); orange: less likely.";
  return el("p", { class: "soft" }, words, whole && " Where tokens were not recorded, the whole command is shaded.");
}

// What these episodes do not hold: the run did not train it, an older version wrote them, or they are of `eval/`.
function missing(parts) {
  const steps = parts.flatMap((episode) => episode.steps);
  const lacks = {
    "figures of single tokens": "tokens",
    "predicted answers": "predicted",
    "guesses of the command": "guess",
  };
  const names = Object.entries(lacks)
    .filter(([, key]) => !steps.some((step) => step[key] !== undefined))
    .map(([name]) => name);
  return names.length > 0 && el("p", { class: "soft" }, `Not recorded here: ${names.join(", ")}.`);
}

function column({ row, episode, label }, data, settings, scale, pair) {
  const won = episode.success;
  const end = won
    ? `won in ${plural(episode.steps.length, "turn")}`
    : `lost after ${plural(episode.steps.length, "turn")}`;
  const why = won ? "" : `${data.failures[episode.failure]}${STOPS[episode.stop] ? `; ${STOPS[episode.stop]}` : ""}`;
  const { observation: first = "", told } = episode.steps[0] || {};
  return el(
    "article",
    { class: "episode", "aria-label": label },
    el(
      pair ? "h2" : "p",
      { class: "which" },
      label,
      " ",
      el("span", { class: `outcome ${won ? "won" : "lost"}` }, `${won ? "✓" : "✗"} ${end}`),
      why && el("span", { class: "why" }, why),
    ),
    el("p", { class: "says" }, first),
    told &&
      el("details", { class: "figures" }, el("summary", {}, "What its memory told it"), el("p", { class: "says" }, told)),
    el(
      "ol",
      { class: "turns" },
      episode.steps.map((step, index) => turn(step, index, settings, scale)),
    ),
  );
}

function turn(step, index, settings, scale) {
  const written = plain(step.response || "") !== step.action && Boolean(step.response);
  const shaded = () => tokens(step, settings.shade, scale, settings.numbers);
  const command = step.action
    ? ["> ", written && step.tokens ? step.action : shaded()]
    : `no command: ${step.fault || "the response has none"}`;
  const marks = [
    step.invalid && el("span", { class: "mark bad" }, "invalid"),
    step.repeated && el("span", { class: "mark" }, "repeated"),
    step.imagined && el("span", { class: "mark bad" }, "imagined the answer"),
    step.reward ? el("span", { class: "mark good" }, `reward ${figure(step.reward)}`) : null,
    step.probability !== null && el("span", { class: "soft" }, `probability ${chance(step.probability)}`),
    step.surprise !== undefined && el("span", { class: "soft" }, `surprise ${step.surprise.toFixed(2)}`),
    Object.entries(step.advantages || {}).map(([name, value]) =>
      el("span", { class: "soft" }, `${name} ${figure(value)}`),
    ),
  ];
  return el(
    "li",
    { class: step.invalid ? "turn invalid" : "turn" },
    el(
      "p",
      { class: "act" },
      hidden(`Turn ${index + 1}: `),
      el("span", { class: "count", "aria-hidden": "true" }, String(index + 1)),
      el("code", {}, command),
    ),
    written && el("p", { class: "says written" }, step.tokens ? shaded() : step.response),
    el("p", { class: "marks" }, marks),
    step.guess !== undefined && guess(step),
    answer(step),
  );
}

// A response without the mark that ends it: "look" of "look<|im_end|>".
function plain(response) {
  return response.replace(/<[|][^|<>]*[|]>$/, "").trim();
}

function guess(step) {
  const right = step.guess === step.action;
  return el(
    "p",
    { class: "guess" },
    "Guessed from what came of it: ",
    el("code", {}, step.guess || "nothing"),
    " ",
    el("span", { class: right ? "won" : "lost" }, right ? "✓ right" : "✗ wrong"),
  );
}

function answer(step) {
  if (!step.predicted) return el("p", { class: "says" }, step.answer);
  const wrong = step.predicted.filter(([sign]) => sign !== "=");
  if (!wrong.length)
    return el("p", { class: "says" }, step.answer, el("span", { class: "won block" }, "✓ predicted word for word"));
  const side = (title, sign, element) =>
    el(
      "div",
      {},
      el("p", { class: "soft title" }, title),
      el(
        "p",
        { class: "says" },
        step.predicted
          .filter(([kind]) => kind === "=" || kind === sign)
          .map(([kind, text]) => (kind === "=" || !text.trim() ? text : el(element, {}, text))),
      ),
    );
  return el("div", { class: "two" }, side("The world", "-", "mark"), side("Predicted", "+", "del"));
}
