// The page: which view the address asks for, the keys, and following a run that is still going.

import { el } from "./dom.js";
import { address, parsed, records, sameTask, selected, origin } from "./episodes.js";
import { keysDialog, onKey } from "./keys.js";
import { listView } from "./list.js";
import { overviewView } from "./overview.js";
import { readingView } from "./reading.js";
import { openSource } from "./source.js";

const POLL = 3000; // milliseconds between two looks at a run that is still going
const main = document.getElementById("main");
const top = document.getElementById("top");
const settings = { shade: "probability", numbers: false };
const known = []; // by run: {overview, episodes}
let source,
  labels,
  moves,
  drawing = 0;

async function start() {
  source = await openSource();
  labels = await source.runs();
  document.body.append(keysDialog(source.live));
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  window.addEventListener("hashchange", () => draw({ moved: true }));
  window.addEventListener(
    "resize",
    soon(() => parsed(location.hash).view || draw({})),
  );
  document.addEventListener("keydown", (event) => onKey(event, moves || {}));
  await draw({ moved: location.hash.length > 1 });
  if (source.live) setInterval(follow, POLL);
}

async function load(run, again = false) {
  if (again || !known[run]) {
    const [overview, listed] = await Promise.all([source.overview(run), source.episodes(run)]);
    known[run] = { overview, episodes: records(run, listed) };
  }
  return known[run];
}

function go(where) {
  location.hash = where;
}

// Draw what the address asks for; `moved`: the reader went there, so that the view begins at its top.
async function draw({ moved = false }) {
  const mine = ++drawing;
  const { run: asked, view, id, parameters } = parsed(location.hash);
  const run = Math.min(asked, labels.length - 1);
  let content, title;
  try {
    const { overview, episodes } = await load(run);
    const others = { run, data: overview, episodes, parameters };
    [content, title] =
      view === "episode"
        ? await reading(others, id)
        : view === "episodes"
          ? await listing(others)
          : [overviewView(run, overview, episodes, width()), overview.name];
    if (view === "") moves = { list: () => go(address(run, "episodes")), next: () => go(address(run, "episodes")) };
  } catch (error) {
    [content, title] = [
      [el("h1", { tabindex: -1 }, "This cannot be shown"), el("p", { role: "alert" }, error.message)],
      "error",
    ];
    moves = {};
  }
  if (mine !== drawing) return; // the reader has gone on meanwhile
  document.title = `${title} · envrl`;
  top.replaceChildren(...header(run, view));
  replace(content, moved);
}

function width() {
  return Math.max(320, Math.min(1040, main.clientWidth - 76));
}

// Put a view in place; one that is drawn anew keeps its place, its focus and what was unfolded.
function replace(content, moved) {
  const open = new Set([...main.querySelectorAll("details[open][data-keep]")].map((fold) => fold.dataset.keep));
  const focused = main.contains(document.activeElement) ? document.activeElement.id : "";
  main.replaceChildren(...[content].flat(Infinity).filter(Boolean));
  if (moved) {
    window.scrollTo(0, 0);
    main.querySelector("h1").focus({ preventScroll: true });
    return;
  }
  for (const fold of main.querySelectorAll("details[data-keep]")) fold.open = open.has(fold.dataset.keep);
  if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
}

function header(run, view) {
  const current = (name) => (view === name ? "page" : null);
  const choice =
    labels.length > 1
      ? el(
          "label",
          {},
          "Run",
          el(
            "select",
            {
              id: "run",
              onchange: (event) => go(address(Number(event.target.value), view === "episodes" ? view : "")),
            },
            labels.map((label, index) => el("option", { value: index, selected: index === run }, label)),
          ),
        )
      : el("span", { class: "soft" }, labels[run]);
  const live = source.live && !known[run]?.overview.finished;
  return [
    el(
      "nav",
      { "aria-label": "Views" },
      el("a", { href: address(run), "aria-current": current("") }, "Overview"),
      el("a", { href: address(run, "episodes"), "aria-current": current("episodes") }, "Episodes"),
    ),
    choice,
    live && el("span", { class: "pill live" }, "following"),
    el(
      "button",
      { type: "button", id: "keys-button", onclick: () => document.getElementById("keys").showModal() },
      "Keys",
    ),
  ].filter(Boolean);
}

async function listing({ run, data, episodes, parameters }) {
  const shown = await chosen(run, episodes, parameters);
  const first = shown[0];
  moves = {
    next: () => first && go(address(run, "episode", parameters, first.id)),
    failure: () => lost(shown, -1) && go(address(run, "episode", parameters, lost(shown, -1).id)),
    back: () => go(address(run)),
    list: () => go(address(run, "episodes")),
  };
  return [listView(run, data, episodes, shown, parameters, go), `Episodes of ${data.name}`];
}

async function chosen(run, episodes, parameters) {
  const found = parameters.words ? new Set(await source.search(run, parameters.words)) : null;
  return selected(episodes, parameters, found);
}

function lost(list, after) {
  return list.find((episode, index) => index > after && !episode.won);
}

async function reading({ run, data, episodes, parameters }, id) {
  const row = episodes.find((each) => each.id === id);
  if (!row) throw new Error("This run has no such episode (any more).");
  const everyRun = await Promise.all(labels.map(async (_, index) => (await load(index)).episodes));
  const others = sameTask(row, everyRun);
  const { beside, ...filters } = parameters;
  const list = await chosen(run, episodes, filters);
  const index = list.indexOf(row);
  const around = {
    index,
    count: list.length,
    previous: list[index - 1],
    next: list[index + 1],
    failure: lost(list, index),
  };
  const other = others.find((each) => `${each.run}:${each.id}` === beside);
  const shown = await Promise.all(
    [row, other].filter(Boolean).map(async (each) => ({
      row: each,
      episode: await source.episode(each.run, each.id),
      label: `${labels.length > 1 ? `${labels[each.run]}: ` : ""}${origin(each)}`,
    })),
  );
  const to = (target) => target && (() => go(address(run, "episode", filters, target.id)));
  const change = (changed) => {
    Object.assign(settings, changed);
    draw({});
  };
  const nextBeside = others[(others.indexOf(other) + 1) % (others.length + 1)];
  moves = {
    next: to(around.next),
    previous: to(around.previous),
    failure: to(around.failure),
    back: () => go(address(run, "episodes", filters)),
    list: () => go(address(run, "episodes", filters)),
    beside: () =>
      go(address(run, "episode", { ...filters, beside: nextBeside ? `${nextBeside.run}:${nextBeside.id}` : "" }, id)),
    shade: () => cycle(document.getElementById("shade")),
    numbers: () => document.getElementById("numbers").click(),
  };
  const view = readingView({ run, data, shown, around, others, labels, parameters, settings, go, change });
  return [view, row.goal || row.task];
}

function cycle(select) {
  const able = [...select.options].filter((option) => !option.disabled);
  select.value = able[(able.indexOf(select.selectedOptions[0]) + 1) % able.length].value;
  select.dispatchEvent(new Event("change"));
}

// Look whether a run has grown; what is being read stays as it is, the lists and curves are drawn anew.
async function follow() {
  if (document.hidden) return;
  try {
    const stamps = await source.stamps();
    const grown = known.flatMap((each, run) => (each && each.overview.stamp !== stamps[run] ? [run] : []));
    await Promise.all(grown.map((run) => load(run, true)));
    const { run, view } = parsed(location.hash);
    if (grown.includes(run) && view !== "episode") {
      await draw({});
      say(`${known[run].overview.name}: ${known[run].overview.status}, ${known[run].episodes.length} episodes`);
    }
    say("", "gone");
  } catch {
    say("The server does not answer: the page shows what it knew last.", "gone");
  }
}

function say(words, kind = "") {
  const said = document.getElementById("said");
  if (kind === "gone" ? said.dataset.kind === "gone" || words : words) said.textContent = words;
  said.dataset.kind = words ? kind : "";
  said.className = words && kind ? "note" : "hidden";
}

function soon(action) {
  let waiting;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(action, 200);
  };
}

start();
