// Where the page has its data from: the server of `envrl view`, or the page's own file (`envrl report`).

export async function openSource() {
  const packed = document.getElementById("data");
  return packed ? new FileSource(await unpacked(packed.textContent)) : new ServerSource();
}

class ServerSource {
  live = true;

  runs = () => asked("api/runs");
  stamps = () => asked("api/stamps");
  overview = (run) => asked(`api/overview?run=${run}`);
  episodes = (run) => asked(`api/episodes?run=${run}`);
  episode = (run, id) => asked(`api/episode?run=${run}&id=${encodeURIComponent(id)}`);
  search = (run, words) => asked(`api/search?run=${run}&words=${encodeURIComponent(words)}`);
}

async function asked(address) {
  const answer = await fetch(address, { cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

class FileSource {
  live = false;

  constructor(data) {
    this.data = data;
  }

  runs = async () => [this.data.label];
  stamps = async () => [this.data.overview.stamp];
  overview = async () => this.data.overview;
  episodes = async () => this.data.episodes;
  episode = async (_, id) => {
    const found = this.data.read[id];
    if (!found) throw new Error("this episode is not in the file");
    return found;
  };
  search = async (_, words) => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    return Object.entries(this.data.read)
      .filter(([, episode]) => holds(episode, wanted))
      .map(([id]) => id);
  };
}

// The same rule as the server's: every word stands somewhere in the texts of the episode, in any case.
function holds(episode, wanted) {
  const texts = [episode.task];
  for (const step of episode.steps) {
    const predicted = (step.predicted || [])
      .filter(([sign]) => sign !== "-")
      .map(([, text]) => text)
      .join("");
    texts.push(step.observation, step.response || "", step.action, predicted, step.guess || "", step.answer);
  }
  const text = texts.join("\n").toLowerCase();
  return wanted.every((word) => text.includes(word));
}

// The file's data: JSON, compressed by gzip, in base64.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}
