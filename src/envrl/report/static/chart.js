// Charts of lines and of rates with their intervals, as SVG; each also says its figures in words and as a table.

import { el, figure, percent, svg, table } from "./dom.js";

// Round numbers within [low, high], a step of 1, 2 or 5 times a power of ten apart.
export function ticks(low, high, most) {
  if (!(high > low)) return [low];
  const power = 10 ** Math.floor(Math.log10((high - low) / most));
  const step = [1, 2, 5, 10, 20]
    .map((factor) => factor * power)
    .find((size) => Math.floor(high / size + 1e-9) - Math.ceil(low / size - 1e-9) <= most);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

// The range of an axis: from 0 where nothing is negative, unless the values hardly differ.
export function span(values, rate) {
  let low = Math.min(...values);
  const high = Math.max(...values);
  if (rate) return [0, Math.min(1, 1.1 * high) || 1];
  if (low >= 0 && high - low > 0.15 * high) low = 0;
  const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [low === 0 ? 0 : low - margin, high + margin];
}

export function lineChart(chart, width, height) {
  const lines = chart.lines;
  const points = lines.flatMap((line) => line.points);
  const bounds = lines.flatMap((line) => (line.intervals || []).flatMap(([, low, high]) => [low, high]));
  const xs = points.map(([x]) => x);
  const [y0, y1] = chart.range || span([...points.map(([, y]) => y), ...bounds], chart.rate);
  const show = (value) => shown(value, chart.rate, y1 - y0);
  const frame = {
    left: 48,
    right: width - 12,
    top: 10,
    bottom: height - 34,
    x0: Math.min(...xs),
    x1: Math.max(...xs),
    y0,
    y1,
  };
  const drawn = [
    axes(frame, chart.x, show),
    lines.map((line, index) => drawnLine(frame, line, chart, show, index, lines)),
  ];
  const picture = svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(chart, show) },
    drawn,
  );
  const named = lines.filter((line) => line.name && !line.faint);
  const key =
    named.length > 1 &&
    el(
      "ul",
      { class: "legend" },
      named.map((line) => el("li", {}, el("span", { class: `swatch c${line.colour}` }), line.name)),
    );
  return el("figure", {}, key, picture, figures(chart, show));
}

function shown(value, rate, range) {
  return rate ? percent(value, range < 0.05 ? 1 : 0) : figure(value);
}

function place(frame, x, y) {
  const across = frame.x1 > frame.x0 ? (x - frame.x0) / (frame.x1 - frame.x0) : 0.5;
  const up = frame.y1 > frame.y0 ? (y - frame.y0) / (frame.y1 - frame.y0) : 0.5;
  return [
    round(frame.left + across * (frame.right - frame.left)),
    round(frame.bottom - up * (frame.bottom - frame.top)),
  ];
}

function round(pixel) {
  return Math.round(pixel * 10) / 10;
}

function axes(frame, name, show) {
  const parts = ticks(frame.y0, frame.y1, 5).map((level) => {
    const [, y] = place(frame, frame.x0, level);
    return [
      svg("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y, y2: y }),
      svg("text", { class: "tick", x: frame.left - 7, y: y + 4, "text-anchor": "end" }, show(level)),
    ];
  });
  const along = ticks(frame.x0, frame.x1, Math.max(2, Math.floor((frame.right - frame.left) / 70))).filter(
    Number.isInteger,
  );
  const marks = along.map((tick) =>
    svg(
      "text",
      { class: "tick", x: place(frame, tick, frame.y0)[0], y: frame.bottom + 16, "text-anchor": "middle" },
      figure(tick),
    ),
  );
  const base = svg("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom });
  const title = svg(
    "text",
    { class: "tick", x: (frame.left + frame.right) / 2, y: frame.bottom + 31, "text-anchor": "middle" },
    name,
  );
  return [parts, base, marks, title];
}

function drawnLine(frame, line, chart, show, index, lines) {
  const sided = lines.filter((each) => each.intervals && each.intervals.length);
  const shift = line.intervals && line.intervals.length ? 3 * (sided.indexOf(line) - (sided.length - 1) / 2) : 0;
  const pixels = line.points.map(([x, y]) => [place(frame, x, y)[0] + shift, place(frame, x, y)[1]]);
  const parts = (line.intervals || []).map(([x, low, high]) => {
    const [px, bottom] = place(frame, x, low);
    return svg("line", { class: "whisker", x1: px + shift, x2: px + shift, y1: bottom, y2: place(frame, x, high)[1] });
  });
  if (pixels.length > 1)
    parts.push(svg("path", { class: "line", d: `M${pixels.map((pixel) => pixel.join(" ")).join("L")}` }));
  if (line.faint) return svg("g", { class: `c${line.colour} faint` }, parts);
  line.points.forEach(([x, y], number) => {
    const [cx, cy] = pixels[number];
    if (line.marks || pixels.length === 1) parts.push(svg("circle", { class: "mark", cx, cy, r: 4 }));
    const interval = (line.intervals || []).find(([at]) => at === x);
    const between = interval ? ` (${show(interval[1])} to ${show(interval[2])})` : "";
    const words = `${line.name} ${chart.x} ${figure(x)}: ${show(y)}${between}`.trim();
    parts.push(svg("circle", { class: "hit", cx, cy, r: 8 }, svg("title", {}, words)));
  });
  return svg("g", { class: `c${line.colour}` }, parts);
}

function inWords(chart, show) {
  const said = chart.lines
    .filter((line) => !line.faint)
    .map((line) => {
      const [first, last] = [line.points[0], line.points[line.points.length - 1]];
      const ends = `${show(first[1])} at ${chart.x} ${figure(first[0])}`;
      const name = line.name ? `${line.name}: ` : "";
      return name + ends + (line.points.length > 1 ? `, ${show(last[1])} at ${chart.x} ${figure(last[0])}` : "");
    });
  return `${chart.title}. ${said.join("; ")}.`;
}

// The same figures as a table, made when it is opened.
function figures(chart, show) {
  const fold = el("details", { class: "figures", "data-keep": chart.title }, el("summary", {}, "Figures"));
  fold.addEventListener("toggle", () => {
    if (!fold.open || fold.children.length > 1) return;
    const lines = chart.lines.filter((line) => !line.faint);
    const values = lines.map((line) => new Map(line.points));
    const xs = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    const rows = xs.map((x) => [figure(x), ...values.map((each) => (each.has(x) ? show(each.get(x)) : "–"))]);
    fold.append(table(`${chart.title}, figures`, [chart.x, ...lines.map((line) => line.name || chart.title)], rows));
  });
  return fold;
}

// A rate before (ring) and after (dot) on an axis from 0 to 100 %, with their intervals; the words stand beside it.
export function pairBar(before, after, colour, named = false) {
  const [width, height] = [220, 26];
  const x = (rate) => round(6 + rate * (width - 12));
  const parts = [0, 0.25, 0.5, 0.75, 1].map((rate) =>
    svg("line", { class: "grid", x1: x(rate), x2: x(rate), y1: 0, y2: height }),
  );
  for (const [each, y, kind, shade] of [
    [before, 8, "ring", "c0"],
    [after, 18, "mark", `c${colour}`],
  ]) {
    if (!each) continue;
    parts.push(
      svg(
        "g",
        { class: shade },
        svg("line", { class: "whisker", x1: x(each.low), x2: x(each.high), y1: y, y2: y }),
        svg("circle", { class: kind, cx: x(each.rate), cy: y, r: 4.5 }),
      ),
    );
  }
  const [ends, room] = named
    ? [
        [
          [6, "start", "0"],
          [width / 2, "middle", "50 %"],
          [width - 6, "end", "100 %"],
        ],
        10,
      ]
    : [[], 0];
  const words = ends.map(([at, anchor, text]) =>
    svg("text", { class: "tick small", x: at, y: height + 8, "text-anchor": anchor }, text),
  );
  return svg(
    "svg",
    { class: "chart pair", viewBox: `0 0 ${width} ${height + room}`, "aria-hidden": "true" },
    parts,
    words,
  );
}
