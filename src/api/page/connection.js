// The connection to the gateway: the token, the stream of reports, and what to do when it ends.

const SILENCE = 6_000; // a stream that is silent for longer is dead, in milliseconds: there is one event a second

let report = null; // the last one
let reported = 0; // when it came
let lostSince = 0;
let hidingNote; // the timer
let running = false; // whether the page is connected, or tries to be
let closeStream = () => {};
let wake = () => {}; // ends a pause

function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { cache: "no-store", ...options, headers });
}

/** When the gateway started, by its own clock, in milliseconds since 1970. */
const started = ({ time, uptime_seconds }) => Date.parse(time) - uptime_seconds * 1_000;

function show(now) {
  // both times are measured together, so their difference varies by a few milliseconds
  const restarted = report && started(now) - started(report) > 500;
  if (restarted) {
    measured.clear();
    parkedKnown = "";
  }
  if (lostSince || restarted) {
    const what = restarted ? "The gateway has restarted. " : "";
    note(`${what}Connected again at ${clock(Date.now())}.`, 60_000);
    announce(`${what}Connected again.`);
  }
  lostSince = 0;
  report = now;
  reported = Date.now();
  byId("login").hidden = true;
  byId("content").hidden = false;
  byId("content").classList.remove("stale");
  const mode = now.mode === "broker" ? "with a broker" : "without a broker";
  setText(byId("about"), `Version ${now.version} – ${mode} – up for ${duration(now.uptime_seconds)}`);
  setText(byId("updated"), `State of ${clock(reported)}.`);
  sample(now);
  showHealth(now);
  showHeld(now);
  showParts(now);
  showDeliveries(now);
  showEvents(now);
  fetchParked(now);
}

/** Shows a note about the connection, for a while or until the next one. */
function note(text, time) {
  clearTimeout(hidingNote);
  byId("connection").hidden = false;
  setText(byId("connection-text"), text);
  if (time) hidingNote = setTimeout(() => (byId("connection").hidden = true), time);
}

function lost() {
  if (!lostSince) {
    lostSince = Date.now();
    announce("No connection to the gateway.");
    document.title = "No connection – gateway";
    byId("health").className = "card";
    setIcon(byId("headline-icon"), "none");
    setText(byId("headline"), "Unknown: no connection");
    knownProblems = "";
  }
  const old = report ? ` What you see is from ${clock(reported)} and may be out of date.` : "";
  note(`No connection to the gateway since ${clock(lostSince)}.${old} This page tries to reconnect by itself.`);
  byId("content").classList.add("stale");
}

function askForToken(error) {
  sessionStorage.removeItem("token");
  byId("content").hidden = true;
  byId("connection").hidden = true;
  byId("login").hidden = false;
  setText(byId("login-error"), error);
  byId("token").focus();
}

/** Reads the events of one stream until it ends. */
async function read(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    if (events.length === 0) continue;
    // an earlier one is out of date already
    const data = events[events.length - 1].split("\n").filter((line) => line.startsWith("data: "));
    show(JSON.parse(data.map((line) => line.slice(6)).join("\n")));
  }
}

/** Asks for the state once. */
async function ask(options) {
  const answer = await request("status", options);
  if (answer.ok) show(await answer.json());
  else if (answer.status !== 401) throw new Error(`${answer.status}`);
  return answer.status;
}

/** Connects once. Returns how long to wait before the next attempt, or null if a token is needed. */
async function connect() {
  const abort = new AbortController();
  let timer;
  let isHidden = false;
  closeStream = () => {
    isHidden = true;
    abort.abort();
  };
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => abort.abort(), SILENCE);
  };
  alive();
  try {
    const hidden = document.hidden;
    // a browser has few connections to a server, and only the page in front needs one all the time
    const options = { signal: abort.signal };
    const answer = hidden ? { status: await ask(options) } : await request("events", options);
    if (answer.status === 401) {
      askForToken(sessionStorage.getItem("token") ? "The gateway does not accept this token." : "");
      return null;
    }
    if (hidden) return 10_000;
    if (answer.status === 503) {
      // as many pages are open as may be: this one asks now and then
      await ask(options);
      return 2_000;
    }
    if (!answer.ok) throw new Error(`${answer.status}`);
    await read(answer.body, alive);
    // a stream ends after a while, or when the gateway stops
    if (report && report.stopping) lost();
    return 250;
  } catch {
    if (isHidden) return 0;
    lost();
    return 1_000;
  } finally {
    clearTimeout(timer);
    closeStream = () => {};
  }
}

async function run() {
  if (running) return;
  running = true;
  for (;;) {
    const time = await connect();
    if (time === null) break;
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, time);
    });
  }
  running = false;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) closeStream();
  else wake();
});

byId("all-events").addEventListener("click", () => {
  allEvents = !allEvents;
  if (report) showEvents(report);
});
byId("confirm-no").addEventListener("click", () => byId("confirm").close());
byId("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  byId("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(token)) {
    askForToken("A token has visible ASCII characters only.");
    return;
  }
  sessionStorage.setItem("token", token);
  run();
});
const needsToken = document.documentElement.dataset.token === "needed";
// a link sends no token
byId("json").hidden = needsToken;
if (needsToken && !sessionStorage.getItem("token")) askForToken("");
else run();
