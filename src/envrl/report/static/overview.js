// The first view of a run: what it learned, where its episodes fail, its curves.

import { lineChart, pairBar } from "./chart.js";
import { el, percent, plural, section, table } from "./dom.js";
import { address, origin } from "./episodes.js";

const ARROW = "\u2192";

export function overviewView(run, data, episodes, width) {
  return [
    el(
      "h1",
      { tabindex: -1 },
      data.name,
      el("span", { class: data.finished ? "pill won" : "pill" }, data.status),
      data.quick && el("span", { class: "pill" }, "quick run: its figures mean nothing"),
    ),
    data.notes.map((note) => el("p", { class: "note" }, note)),
    el(
      "dl",
      { class: "facts" },
      data.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    learned(data),
    failures(run, data, episodes),
    data.learning &&
      section(
        "Learning curve",
        el("p", { class: "soft" }, data.learningNote),
        el("div", { class: "card" }, lineChart(data.learning, width, width > 600 ? 360 : 280)),
      ),
    byType(run, data),
    charts("Losses and weights", "", data.updates),
    charts(
      "What it knows of its world",
      "Measured at every evaluation, on transitions of tasks that it never trained on.",
      data.knowledge,
    ),
    actions(data),
    time(data, width),
    charts("Warm start", data.warmStartNote, data.warmStart),
    section(
      "Configuration",
      el(
        "div",
        { class: "card" },
        el(
          "details",
          { "data-keep": "config" },
          el("summary", {}, "config.toml"),
          el("pre", { tabindex: 0 }, data.config),
        ),
      ),
    ),
  ];
}

function learned(data) {
  if (!data.results.length) return section("What it learned", el("p", {}, "No evaluation has been made yet."));
  const cards = data.results.map((result) => {
    const { before, after } = result;
    const gain = before && after && gained(100 * (after.rate - before.rate));
    const rates = [before, after]
      .filter(Boolean)
      .map((each) => percent(each.rate, 1))
      .join(` ${ARROW} `);
    return el(
      "div",
      { class: "card" },
      el("h3", {}, result.split),
      el("p", { class: "headline" }, rates, " ", gain),
      pairBar(before, after, result.colour, true),
      el(
        "p",
        { class: "soft" },
        [
          before && `Before: ${measured(before)}.`,
          after && ` After update ${after.update}: ${measured(after)}.`,
          ` ${result.verdict}`,
        ],
        result.scores.length > 0 && ` Mean score ${result.scores.join(` ${ARROW} `)}.`,
      ),
    );
  });
  return section(
    "What it learned",
    el("p", { class: "soft" }, "Share of episodes won, before and after reinforcement learning, with 95 % intervals."),
    el("div", { class: "grid" }, cards),
  );
}

function gained(points) {
  const [sign, kind] = Math.abs(points) < 0.05 ? ["\u00b1", "soft"] : points > 0 ? ["+", "won"] : ["\u2212", "lost"];
  return el("span", { class: `gain ${kind}` }, `${sign}${Math.abs(points).toFixed(1)} points`);
}

function measured(each) {
  return `${plural(each.episodes, "game")}, ${(100 * each.low).toFixed(1)} to ${percent(each.high, 1)}`;
}

// How many of the recorded episodes failed in which way, before and after; every number leads to its episodes.
function failures(run, data, episodes) {
  const title = "Where episodes fail";
  if (!episodes.length) return section(title, el("p", { class: "soft" }, "No episode has been written down yet."));
  const columns = new Map(); // by origin: how many were played, won, lost in each way
  for (const episode of episodes) {
    const from = origin(episode);
    if (!columns.has(from)) columns.set(from, { played: 0, won: 0 });
    const counts = columns.get(from);
    const end = episode.won ? "won" : episode.failure;
    counts.played += 1;
    counts[end] = (counts[end] || 0) + 1;
  }
  const cell = (from, counts, name, parameters) =>
    counts[name]
      ? [
          el("a", { href: address(run, "episodes", { from, ...parameters }) }, String(counts[name])),
          el("span", { class: "soft" }, ` ${percent(counts[name] / counts.played)}`),
        ]
      : "0";
  const used = Object.entries(data.failures).filter(([name]) => [...columns.values()].some((counts) => counts[name]));
  const rows = [...columns].map(([from, counts]) => [
    el("a", { href: address(run, "episodes", { from }) }, from),
    String(counts.played),
    cell(from, counts, "won", { outcome: "won" }),
    ...used.map(([name]) => cell(from, counts, name, { why: name })),
  ]);
  return section(
    title,
    el(
      "p",
      { class: "soft" },
      "The recorded episodes, each in one column by the first rule that holds. Follow a number to its episodes.",
    ),
    el(
      "div",
      { class: "card" },
      table("Where episodes fail", ["episodes of", "played", "won", ...used.map(([, words]) => words)], rows),
    ),
  );
}

function byType(run, data) {
  const cards = data.results
    .filter((result) => result.kinds.length)
    .map((result) => {
      const rows = result.kinds.map(([kind, before, after]) => {
        const rates = [before, after]
          .filter(Boolean)
          .map((each) => percent(each.rate))
          .join(` ${ARROW} `);
        return [
          el("a", { href: address(run, "episodes", { type: kind }) }, kind),
          rates,
          String((after || before).episodes),
          pairBar(before, after, result.colour),
        ];
      });
      return el(
        "div",
        { class: "card" },
        el("h3", {}, result.split),
        table(`Success by type of task, ${result.split}`, ["type", "won", "episodes", "95 % intervals"], rows),
      );
    });
  return (
    cards.length > 0 &&
    section(
      "Success by type of task",
      el("p", { class: "soft" }, "Ring: before. Dot: after."),
      el("div", { class: "grid" }, cards),
    )
  );
}

function charts(title, note, drawn) {
  if (!drawn.length) return note && section(title, el("p", {}, note));
  const cards = drawn.map((chart) =>
    el(
      "div",
      { class: "card" },
      el("h3", {}, chart.title, chart.unit && el("span", { class: "unit" }, ` ${chart.unit}`)),
      lineChart(chart, 340, 190),
    ),
  );
  return section(title, note && el("p", { class: "soft" }, note), el("div", { class: "grid small" }, cards));
}

function actions(data) {
  const cards = data.actions
    .filter((each) => each.rows.length)
    .map(({ split, rows }) => {
      const change = (pair) =>
        pair
          .filter((value) => value !== null)
          .map((value) => percent(value, value === 0 || value === 1 ? 0 : 1))
          .join(` ${ARROW} `) || "–";
      return el(
        "div",
        { class: "card" },
        el("h3", {}, split),
        table(
          `Usable actions, ${split}`,
          ["share of actions", data.restricted ? "restricted" : "as trained", "free text"],
          rows.map(([words, trained, free]) => [words, change(trained), change(free)]),
        ),
      );
    });
  const note =
    "Before and after. Sampling restricted to the admissible commands hides what the model says by itself; so a part of each split is played again without it.";
  return cards.length > 0 && section("Actions", el("p", { class: "soft" }, note), el("div", { class: "grid" }, cards));
}

function time(data, width) {
  if (!data.phases.length) return null;
  const total = (points) => points.reduce((sum, [, seconds]) => sum + seconds, 0);
  const whole = data.phases.reduce((sum, [, points]) => sum + total(points), 0);
  const lines = data.phases.map(([name, points], index) => ({
    name,
    points,
    colour: 1 + (index % 6),
    marks: points.length <= 12,
  }));
  const rows = data.phases.map(([name, points]) => [
    name,
    `${(total(points) / points.length).toPrecision(3)} s`,
    percent(total(points) / whole, 1),
  ]);
  const chart = { title: "Seconds of an update by phase", rate: false, x: "update", lines };
  return section(
    "Where the time went",
    lines[0].points.length > 1 && el("div", { class: "card" }, lineChart(chart, width, width > 600 ? 280 : 240)),
    el(
      "div",
      { class: "grid" },
      el(
        "div",
        { class: "card" },
        el("h3", {}, "Mean seconds of an update"),
        table("Mean seconds of an update", ["phase", "an update", "share"], rows),
      ),
      el(
        "div",
        { class: "card" },
        el("h3", {}, "The whole run"),
        table("The whole run", ["stage", "took"], data.stages),
      ),
    ),
  );
}
