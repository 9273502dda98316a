// The list of episodes as records, the filters that an address holds, and what is said of an episode in a few words.

export function records(run, listed) {
  return listed.rows.map(([file, offset, task, kind, goal, member, won, turns, score, failure, free]) => {
    const [name, update, split] = listed.files[file];
    return {
      run,
      id: `${name}@${offset}`,
      update,
      split,
      member,
      won: won === 1,
      turns,
      score,
      failure,
      free: free === 1,
      task: listed.tasks[task],
      kind: listed.kinds[kind],
      goal: listed.goals[goal],
      read: name.startsWith("trajectories/"),
    };
  });
}

export const FILTERS = ["outcome", "why", "type", "from", "words"];

// Where an episode is from: "training, update 10", "valid_seen, update 0".
export function origin(episode) {
  return `${episode.split || "training"}, update ${episode.update}${episode.free ? ", free text" : ""}`;
}

export function selected(episodes, filters, found) {
  return episodes.filter(
    (episode) =>
      (!filters.outcome || episode.won === (filters.outcome === "won")) &&
      (!filters.why || episode.failure === filters.why) &&
      (!filters.type || episode.kind === filters.type) &&
      (!filters.from || origin(episode) === filters.from) &&
      (!found || found.has(episode.id)),
  );
}

// Other episodes of the same task: this run's other updates and members first, then those of the other runs.
export function sameTask(episode, everyRun) {
  const others = everyRun
    .flat()
    .filter((other) => other.task === episode.task && !(other.run === episode.run && other.id === episode.id));
  const distance = (other) => (other.run === episode.run ? 0 : 1e9) + (other.split === episode.split ? 0 : 1e6);
  return others.sort(
    (a, b) => distance(a) - distance(b) || a.run - b.run || a.update - b.update || a.member - b.member,
  );
}

// The address of a view: #/RUN, #/RUN/episodes?…, #/RUN/episode/ID?….
export function address(run, view = "", parameters = {}, id = "") {
  const known = Object.entries(parameters).filter(([, value]) => value);
  const query = known.length ? `?${new URLSearchParams(known)}` : "";
  return `#/${run}${view ? `/${view}` : ""}${id ? `/${encodeURIComponent(id)}` : ""}${query}`;
}

export function parsed(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [run = "0", view = "", id = ""] = path.split("/");
  return {
    run: Number(run) || 0,
    view,
    id: decodeURIComponent(id),
    parameters: Object.fromEntries(new URLSearchParams(query)),
  };
}
