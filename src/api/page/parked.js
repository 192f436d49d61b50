// The parked messages and their buttons.

const MAX_PARKED = 100; // rows of the table

let parked = [];
let parkedKnown = ""; // what they were fetched for
let parkedAt = 0; // and when

async function fetchParked(now) {
  const known = now.outbox ? `${now.outbox.parked} ${now.uptime_seconds < 5}` : "";
  // one that is published and parked again changes no number
  const isOld = now.outbox && now.outbox.parked !== parked.length && Date.now() - parkedAt > 1_000;
  if (known === parkedKnown && !isOld) return;
  parkedKnown = known;
  parkedAt = Date.now();
  if (now.outbox && now.outbox.parked > 0) {
    try {
      const answer = await request("UserManager/Parked");
      if (answer.ok) parked = await answer.json();
      else parkedKnown = "";
    } catch {
      parkedKnown = "";
    }
  } else {
    parked = [];
  }
  showParked();
}

function showParked() {
  const section = byId("parked-section");
  const hadFocus = section.contains(document.activeElement);
  section.hidden = parked.length === 0 && byId("parked-result").textContent === "";
  byId("parked-table").hidden = parked.length === 0;
  setText(byId("parked-count"), parked.length ? number.format(parked.length) : "");
  const more = parked.length - MAX_PARKED;
  byId("more-parked").hidden = more <= 0;
  setText(byId("more-parked"), `And ${number.format(Math.max(0, more))} that came later.`);
  const create = (message) => {
    const row = make("tr");
    const name = make("code", shortened(message.id));
    name.title = message.id;
    cell(row, "Message", "").append(name, make("div", message.type, "muted"));
    cell(row, "Worker", message.user);
    cell(row, "Size", bytes(message.size));
    cell(row, "Since", new Date(message.since * 1000).toLocaleString("en-GB"));
    cell(row, "Reason", message.reason);
    const actions = make("div", undefined, "actions");
    for (const [text, act] of [["Publish", publish], ["Discard", confirmDiscard]]) {
      const button = make("button", text);
      button.type = "button";
      button.setAttribute("aria-label", `${text} message ${shortened(message.id)} of ${message.user}`);
      button.addEventListener("click", () => act(message, button));
      actions.append(button);
    }
    cell(row, "", "").append(actions);
    return row;
  };
  const key = (message) => `${message.id} ${message.since}`;
  reconcile(byId("parked"), parked.slice(0, MAX_PARKED), key, create, () => {});
  if (hadFocus && !section.contains(document.activeElement)) byId("parked-title").focus();
}

async function act(message, method, path, done) {
  const buttons = Array.from(byId("parked").querySelectorAll("button"));
  buttons.forEach((button) => (button.disabled = true));
  let result;
  try {
    const answer = await request(path, { method });
    const failure = answer.ok ? null : await answer.json().catch(() => ({}));
    result = answer.ok ? done : `That failed: ${failure.ERROR || answer.status}.`;
  } catch {
    result = "That failed: the gateway does not answer.";
  }
  buttons.forEach((button) => (button.disabled = false));
  setText(byId("parked-result"), `Message ${shortened(message.id)}: ${result}`);
  parkedKnown = "";
  if (report) await fetchParked(report);
}

function publish(message) {
  const path = `UserManager/Parked/${encodeURIComponent(message.id)}/Publish`;
  return act(message, "POST", path, "handed to the broker again. If it refuses the message again, it is parked again.");
}

function confirmDiscard(message) {
  const dialog = byId("confirm");
  setText(
    byId("confirm-text"),
    `${message.type} of ${message.user}, ${bytes(message.size)}. It is removed and cannot be brought back.`,
  );
  byId("confirm-yes").onclick = () => {
    dialog.close();
    act(message, "DELETE", `UserManager/Parked/${encodeURIComponent(message.id)}`, "discarded.");
  };
  dialog.showModal();
  byId("confirm-no").focus();
}
