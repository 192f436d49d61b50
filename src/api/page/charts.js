// The line charts of messages and bytes a second.

const WINDOW = 300_000; // the time that the charts show, in milliseconds
const SAMPLE = 2_000; // the time between two points

let samples = []; // of the totals

function sample(now) {
  const at = Date.parse(now.time);
  const last = samples[samples.length - 1];
  // totals begin again with the process, and a clock may be set back
  const { sent_bytes: sent, posted } = now.totals;
  if (last && (at < last.at || sent < last.sent_bytes || posted < last.posted)) samples = [];
  if (samples.length && at - samples[samples.length - 1].at < SAMPLE) return;
  samples.push({ at, ...now.totals });
  while (samples.length && samples[0].at < at - WINDOW - SAMPLE) samples.shift();
  chart("messages", ["delivered", "posted"], (value) => rate(value), at);
  chart("bytes", ["sent_bytes", "posted_bytes"], (value) => `${bytes(value)}/s`, at);
}

/** The smallest of 1, 2, 5, 10 … that is at least `value`. */
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.999);
}

function roundedBytes(value) {
  const power = 1024 ** Math.floor(Math.log2(value) / 10);
  return [1, 2, 5, 10, 20, 50, 100, 200, 500, 1024].find((factor) => factor * power >= value) * power;
}

function chart(name, totals, words, now) {
  const svg = byId(`${name}-chart`);
  const width = svg.clientWidth || 520;
  svg.setAttribute("viewBox", `0 0 ${width} 150`);
  const [left, right, top, bottom] = [64, width - 6, 10, 122];
  const lines = totals.map((total) =>
    samples.slice(1).map((point, index) => {
      const before = samples[index];
      return { at: point.at, value: ((point[total] - before[total]) / (point.at - before.at)) * 1000 };
    }),
  );
  const highest = Math.max(1, ...lines.flat().map((point) => point.value));
  const limit = name === "bytes" ? roundedBytes(Math.max(1024, highest)) : rounded(highest);
  const x = (at) => right - ((now - at) / WINDOW) * (right - left);
  const y = (value) => bottom - (value / limit) * (bottom - top);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(draw("path", { class: "rule", d: `M${left} ${y(limit * share)}H${right}` }));
    const label = draw("text", { x: left - 8, y: y(limit * share) + 4, "text-anchor": "end" });
    label.textContent = share ? words(limit * share).replace("/s", "") : "0";
    parts.push(label);
  }
  for (const [minutes, anchor] of [[5, "start"], [2.5, "middle"], [0, "end"]]) {
    const label = draw("text", { x: x(now - minutes * 60_000), y: 142, "text-anchor": anchor });
    label.textContent = minutes ? `${minutes} min ago` : "now";
    parts.push(label);
  }
  lines.forEach((line, index) => {
    const place = (point) => [x(Math.max(point.at, now - WINDOW)), y(point.value)].map((value) => value.toFixed(1));
    const points = line.map((point) => place(point).join(" "));
    if (points.length) parts.push(draw("path", { class: `line ${index ? "two" : "one"}`, d: `M${points.join("L")}` }));
  });
  svg.replaceChildren(...parts);
  const current = lines.map((line) => (line.length ? words(line[line.length - 1].value) : "–"));
  setText(byId(`${name}-one`), current[0]);
  setText(byId(`${name}-two`), current[1]);
  const what = name === "bytes" ? "Bytes a second" : "Messages a second";
  const most = lines.map((line) => words(Math.max(0, ...line.map((point) => point.value))));
  svg.setAttribute(
    "aria-label",
    `${what}: to workers ${current[0]}, at most ${most[0]}; from workers ${current[1]}, at most ${most[1]}`,
  );
}
