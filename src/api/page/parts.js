// The parts of the page that show one report.

const RATE_WINDOW = 8_000; // the time over which the rate of a delivery is measured, in milliseconds
const FEW_EVENTS = 12; // rows before "Show all"

const measured = new Map(); // of deliveries, for their rates
let allEvents = false;
let knownProblems = ""; // that were announced

function stateOf(now) {
  if (!now.ready || now.problems.some((problem) => problem.level === "error")) return "bad";
  return now.problems.length ? "warn" : "ok";
}

function showHealth(now) {
  const state = stateOf(now);
  const headline = { ok: "All is well", warn: "Needs attention", bad: "Work is refused" }[state];
  const words = now.stopping ? "The gateway is stopping" : headline;
  byId("health").className = `card is-${state}`;
  setIcon(byId("headline-icon"), state);
  setText(byId("headline"), words);
  document.title = `${words} – gateway`;
  const held = (part) => (now[part] ? count(now[part].messages, "message") : "an unknown number of messages");
  const wait = now.buffer && now.buffer.messages === 1 ? "waits" : "wait";
  setText(
    byId("summary"),
    `${held("buffer")} ${wait} for workers, ${held("outbox")} for the user manager. ` +
      `${number.format(now.deliveries_count)} ${now.deliveries_count === 1 ? "delivery" : "deliveries"} in progress.`,
  );
  byId("problems").hidden = now.problems.length === 0;
  reconcile(
    byId("problems"),
    now.problems.map((problem, index) => ({ ...problem, index })),
    (problem) => `${problem.index} ${problem.level} ${problem.command}`,
    (problem) => {
      const item = make("li");
      const body = make("div");
      body.append(make("p"));
      if (problem.command) body.append(make("code", problem.command, "command"));
      item.append(makeIcon(problem.level === "error" ? "bad" : "warn"), body);
      return item;
    },
    (item, problem) => {
      const level = problem.level === "error" ? "Error: " : "Warning: ";
      const text = item.querySelector("p");
      if (!text.firstChild) text.append(make("span", level, "hidden"), make("span"));
      setText(text.lastChild, problem.text);
    },
  );
  // says it once, and not again while only the durations change
  const kinds = now.problems.map((problem) => problem.text.replace(/[0-9].*/, "")).join();
  if (knownProblems !== words + kinds) {
    knownProblems = words + kinds;
    announce([words, ...now.problems.map((problem) => problem.text)].join(". "));
  }
}

function showHeld(now) {
  for (const part of ["buffer", "outbox"]) {
    const state = now[part];
    const show = (name, text) => setText(byId(`${part}-${name}`), state ? text(state) : "unknown");
    show("messages", () => number.format(state.messages));
    show("bytes", () => `${bytes(state.bytes)} of ${bytes(state.max_bytes)}`);
    show("oldest", () => (state.messages ? duration(state.oldest_seconds) : "–"));
    byId(`${part}-used`).value = state ? Math.min(1, state.bytes / Math.max(1, state.max_bytes)) : 0;
  }
  const { buffer, outbox } = now;
  setText(byId("buffer-delivery"), buffer ? number.format(buffer.in_delivery) : "unknown");
  setText(byId("buffer-waiting"), buffer ? number.format(buffer.waiting) : "unknown");
  setText(byId("outbox-parked"), outbox ? number.format(outbox.parked) : "unknown");
  setText(byId("outbox-forwarded"), number.format(now.totals.forwarded));
}

function showParts(now) {
  const since = now.broker_seconds === null ? "" : ` for ${duration(now.broker_seconds)}`;
  const [state, text] = {
    none: ["none", "None: the user manager takes its messages over HTTP."],
    connected: ["ok", `Connected${since}.`],
    disconnected: ["warn", `Away${since}. The gateway reconnects by itself.`],
    blocked: ["warn", `Connected, but has accepted no messages${since}.`],
  }[now.broker] || ["none", "Unknown: the outbox does not answer."];
  const waiting = now.waiting_for ? ` Messages wait for ${now.waiting_for}.` : "";
  setIcon(byId("broker-icon"), waiting ? "warn" : state);
  setText(byId("broker"), text + waiting);
  const consumer = now.consumer;
  byId("consumer-part").hidden = !consumer;
  if (consumer) {
    setIcon(byId("consumer-icon"), consumer.connected && !consumer.paused ? "ok" : "warn");
    const paused = "Paused: the buffer is full, and the broker keeps further ones.";
    setText(byId("consumer"), !consumer.connected ? "Not connected." : consumer.paused ? paused : "Connected.");
  }
  const [health, words] = {
    ok: ["ok", "Works and has space."],
    full: ["bad", "Has no space."],
    failed: ["bad", "Has failed."],
  }[now.store] || ["none", "Unknown."];
  setIcon(byId("store-icon"), health);
  setText(byId("store"), words);
}

function measure(delivery, key, now) {
  const points = measured.get(key) || [{ at: Date.parse(delivery.started), sent: 0 }];
  const at = Date.parse(now.time);
  points.push({ at, sent: delivery.bytes_sent });
  while (points.length > 2 && points[1].at < at - RATE_WINDOW) points.shift();
  measured.set(key, points);
  const seconds = (at - points[0].at) / 1000;
  return seconds > 0.2 ? (delivery.bytes_sent - points[0].sent) / seconds : 0;
}

function showDeliveries(now) {
  const list = now.deliveries;
  byId("no-deliveries").hidden = list.length > 0;
  byId("deliveries-table").hidden = list.length === 0;
  setText(byId("deliveries-count"), now.deliveries_count ? number.format(now.deliveries_count) : "");
  const more = now.deliveries_count - list.length;
  byId("more-deliveries").hidden = more === 0;
  setText(byId("more-deliveries"), `And ${number.format(more)} that began later.`);
  const key = (delivery) => [delivery.started, delivery.client, delivery.id].join(" ");
  const keys = new Set(list.map(key));
  for (const known of measured.keys()) if (!keys.has(known)) measured.delete(known);
  reconcile(
    byId("deliveries"),
    list,
    key,
    (delivery) => {
      const row = make("tr");
      const name = make("span", shortened(delivery.id));
      name.title = delivery.id;
      cell(row, "", "").append(make("code"));
      row.querySelector("code").append(name);
      if (delivery.kind === "blend") row.firstChild.append(make("div", ".blend file", "muted"));
      const sent = cell(row, "", "");
      const bar = make("progress");
      bar.max = 1;
      bar.setAttribute("aria-label", `Sent of ${shortened(delivery.id)}`);
      sent.append(make("span"), bar);
      ["Rate", "Time left", "Worker"].forEach((label) => cell(row, label, ""));
      row.lastChild.textContent = delivery.client;
      return row;
    },
    (row, delivery) => {
      const { bytes_sent: sent, bytes_total: total } = delivery;
      const part = total ? sent / total : 1;
      const percent = Math.floor(part * 100);
      setText(row.children[1].firstChild, `${percent} % – ${bytes(sent)} of ${bytes(total)}`);
      row.querySelector("progress").value = part;
      const speed = measure(delivery, key(delivery), now);
      setText(row.children[2], speed > 0 ? `${bytes(speed)}/s` : "–");
      setText(row.children[3], speed > 0 ? duration(Math.ceil((total - sent) / speed)) : "–");
    },
  );
}

function showEvents(now) {
  const list = allEvents ? now.events : now.events.slice(0, FEW_EVENTS);
  byId("no-events").hidden = list.length > 0;
  byId("events-table").hidden = list.length === 0;
  const button = byId("all-events");
  button.hidden = now.events.length <= FEW_EVENTS;
  setText(button, allEvents ? "Show fewer" : `Show all ${now.events.length}`);
  button.setAttribute("aria-expanded", String(allEvents));
  const seen = new Map();
  const key = (event) => {
    const text = [event.time, event.level, event.text].join(" ");
    seen.set(text, (seen.get(text) || 0) + 1);
    return `${text} ${seen.get(text)}`;
  };
  const create = (event) => {
    const row = make("tr");
    const time = make("time", clock(event.time));
    time.dateTime = event.time;
    time.title = new Date(event.time).toLocaleString("en-GB");
    cell(row, "", "").append(time);
    const level = make("span", undefined, "level");
    level.append(makeIcon({ error: "bad", warn: "warn" }[event.level] || "none"));
    level.append(make("span", { error: "Error", warn: "Warning" }[event.level] || "Info"));
    cell(row, "", "").append(level);
    cell(row, "", event.text);
    return row;
  };
  reconcile(byId("events"), list, key, create, () => {});
}
