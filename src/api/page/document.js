// Changes of the document. Everything that comes from the server is shown through textContent.

const ICONS = {
  ok: "M4 12.5l5.2 5.2L20 6.8",
  warn: "M12 3.2L22 20.5H2ZM12 10v4.4M12 17.4v.1",
  bad: "M5 5l14 14M19 5L5 19",
  none: "M5 12h14",
};

const byId = (id) => document.getElementById(id);
let announced = "";

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function setIcon(icon, state) {
  if (icon.dataset.state === state) return;
  icon.dataset.state = state;
  icon.setAttribute("class", `icon ${state}`);
  icon.firstElementChild.setAttribute("d", ICONS[state]);
}

function makeIcon(state) {
  const icon = draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" });
  icon.append(draw("path", {}));
  setIcon(icon, state);
  return icon;
}

function cell(row, label, content) {
  const data = make("td", content);
  if (label) data.dataset.label = label;
  row.append(data);
  return data;
}

/** Makes `list` have one element for each item, in order; those that stay are kept. */
function reconcile(list, items, key, create, update) {
  const old = new Map(Array.from(list.children, (element) => [element.dataset.key, element]));
  items.forEach((item, position) => {
    const name = key(item);
    let element = old.get(name);
    if (element) {
      old.delete(name);
    } else {
      element = create(item);
      element.dataset.key = name;
    }
    update(element, item);
    if (list.children[position] !== element) list.insertBefore(element, list.children[position] || null);
  });
  old.forEach((element) => element.remove());
}

/** Says something to screen readers, once. */
function announce(text) {
  if (announced !== text) setText(byId("announcement"), text);
  announced = text;
}
