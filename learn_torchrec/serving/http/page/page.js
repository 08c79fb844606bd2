"use strict";
// Texts of the server go into the page as text alone: `make` sets textContent.

const byId = (id) => document.getElementById(id);
const results = byId("results");
let ready = null;
let asked = 0;

function make(kind, classes, text, ...children) {
  const element = document.createElement(kind);
  if (classes) element.className = classes;
  if (text !== undefined && text !== null) element.textContent = String(text);
  element.append(...children);
  return element;
}

function say(text, isWrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", isWrong);
}

async function ask(path, body) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const options = { headers };
  if (body) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.status === 401) {
    byId("access").hidden = false;
    byId("token").focus();
    throw new Error("This server asks for a token.");
  }
  if (!response.ok) throw new Error(answer.detail || `Status ${response.status}.`);
  return answer;
}

const names = { cold: "cold user", long_tail: "long-tail user", others: "regular user" };

function day(seconds) {
  const time = new Date(seconds * 1000);
  return Number.isNaN(time.getTime()) ? "" : time.toISOString().slice(0, 16).replace("T", " ");
}

function titled(item, title) {
  return title ? make("span", "title", title) : make("span", "title", `item ${item}`);
}

function person(answer) {
  const events = `${answer.num_events} event${answer.num_events === 1 ? "" : "s"}`;
  const how = answer.source === "popular"
    ? "Nothing is known of this user: candidates are what is popular."
    : `${answer.candidates} candidates nearest to the user's vector, then ranked.`;
  const box = make("section", "person", null,
    make("h2", "", `User ${answer.user}`),
    make("span", "badge cohort", `${names[answer.cohort]}, ${events}`),
    make("p", "", how));
  return box;
}

function historyCard(answer) {
  const list = make("ol", "history");
  for (const event of answer.history) {
    list.append(make("li", "", null, titled(event.item, event.title),
      make("div", "note", `${event.action} · ${day(event.time)} UTC · ${event.item}`)));
  }
  list.tabIndex = 0;
  list.setAttribute("aria-label", "Latest events, newest first");
  const card = make("section", "card", null, make("h2", "", "History"));
  card.append(answer.history.length ? list : make("p", "note", "No events yet."));
  return card;
}

function moved(item, model, other) {
  const change = item.place[other] - item.place[model];
  if (!change) return make("span", "note", "the same place in both");
  const [arrow, words] = change > 0 ? ["▲", "above"] : ["▼", "below"];
  return make("span", `note ${change > 0 ? "up" : "down"}`,
    `${arrow} ${Math.abs(change)} ${words} its place by ${other}`);
}

function number(value) {
  return Math.abs(value) >= 0.001 || value === 0 ? value.toFixed(3) : value.toExponential(1);
}

function found(item, place, model, other, largest) {
  const scores = Object.entries(item.scores);
  const score = make("div", "score");
  const shown = scores.length ? scores : [["similarity", item.similarity]];
  for (const [task, value] of shown) {
    if (value === null) continue;
    score.append(make("div", "", null, make("span", "note", `${task} `), make("b", "", number(value))));
  }
  const first = shown[0][1];
  if (first !== null && largest > 0) {
    const fill = make("i");
    fill.style.width = `${Math.max(0, Math.min(1, first / largest)) * 100}%`;
    score.append(make("div", "bar", null, fill));
  }
  const name = make("div", "", null, titled(item.item, item.title));
  if (item.is_new) name.append(" ", make("span", "badge new", "new item"));
  name.append(make("div", "note", item.similarity === null
    ? `item ${item.item}` : `item ${item.item} · similarity ${item.similarity.toFixed(2)}`));
  const why = make("div", "why");
  if (item.near.length) why.append(make("span", "note", "near to"));
  for (const near of item.near) {
    why.append(make("span", "near", null, make("b", "", near.title || `item ${near.item}`),
      make("span", "note", ` ${near.similarity.toFixed(2)}`)));
  }
  if (other) why.append(moved(item, model, other));
  return make("li", "", null, make("span", "rank", place), name, score, why);
}

function modelCard(each, models) {
  const other = models.map((one) => one.model).find((name) => name !== each.model);
  const firsts = each.items.map((item) => Object.values(item.scores)[0] ?? item.similarity ?? 0);
  const largest = Math.max(0, ...firsts);
  const list = make("ol", "found");
  each.items.forEach((item, index) => list.append(found(item, index + 1, each.model, other, largest)));
  const title = make("h2", "", "Recommended ", make("small", "", `by ${each.model}`));
  const card = make("section", "card model", null, title);
  card.append(each.items.length ? list : make("p", "note", "Nothing is left to recommend."));
  return card;
}

async function show(user) {
  const turn = ++asked;
  say("Asking…");
  byId("user").value = user;
  try {
    const answer = await ask("/recommend", {
      user, k: Number(byId("count").value), without_history: !byId("again").checked,
    });
    if (turn !== asked) return; // a later question is on its way
    const columns = make("div", answer.models.length > 1 ? "columns two" : "columns");
    columns.append(historyCard(answer), ...answer.models.map((each) => modelCard(each, answer.models)));
    results.replaceChildren(person(answer), columns);
    history.replaceState(null, "", `#user=${encodeURIComponent(user)}`);
    say(`Recommendations for user ${user}.`);
  } catch (error) {
    if (turn !== asked) return;
    results.replaceChildren();
    say(error.message, true);
  }
}

async function suggest(start) {
  const answer = await ask(`/users?limit=20&start=${encodeURIComponent(start)}`);
  byId("known").replaceChildren(...answer.users.map((user) => {
    const option = document.createElement("option");
    option.value = user;
    return option;
  }));
  return answer.users;
}

async function another() {
  const digit = String(1 + Math.floor(Math.random() * 9));
  let users = await ask(`/users?limit=100&start=${digit}`).then((answer) => answer.users);
  if (!users.length) users = await ask("/users?limit=100").then((answer) => answer.users);
  if (!users.length) return say("No user has an event yet; type any id.");
  return show(String(users[Math.floor(Math.random() * users.length)]));
}

async function start() {
  try {
    ready = await ask("/ready");
    const items = ready.items === null ? "" : ` · ${ready.items.toLocaleString("en")} items`;
    const fresh = ready.new_items ? ` · ${ready.new_items} new` : "";
    byId("about").textContent =
      `LEARN on TorchRec · ${ready.models.join(" beside ") || "retrieval alone"}${items}${fresh} · version ${ready.version}`;
    const users = await suggest("");
    const wanted = new URLSearchParams(location.hash.slice(1)).get("user");
    if (wanted) await show(wanted);
    else if (users.length) await show(String(users[0]));
    else say("No user has an event yet; type any id.");
  } catch (error) {
    say(error.message, true);
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = byId("user").value.trim();
  if (user) show(user);
});
byId("another").addEventListener("click", () => another().catch((error) => say(error.message, true)));
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("access").hidden = true;
  start();
});
let typing;
byId("user").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => suggest(byId("user").value.trim()).catch(() => {}), 200);
});
for (const id of ["count", "again"]) {
  byId(id).addEventListener("change", () => {
    const user = byId("user").value.trim();
    if (user) show(user);
  });
}
start();
