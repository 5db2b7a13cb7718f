// The page's only script. Texts of models get in through textContent alone: they are never read as HTML.
"use strict";

const PAUSE = 200; // ms after a pair appears in which no verdict is taken: a second click was meant for the last pair
const KEYS = {
  "1": "left", ArrowLeft: "left", "2": "right", ArrowRight: "right", "0": "tie", t: "tie", T: "tie",
  u: "undo", U: "undo", Backspace: "undo",
};
const at = (id) => document.getElementById(id);

let view = { stage: null };
let sending = false;
let shownAt = 0;
let looked = 0; // ms the pair was on the screen, but for the time since `lookedFrom`
let lookedFrom = null; // null while the page is hidden: that time does not count

function secondsTaken() {
  return (looked + (lookedFrom === null ? 0 : performance.now() - lookedFrom)) / 1000;
}

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

function isPaused() {
  return sending || performance.now() - shownAt < PAUSE;
}

function markPaused() {
  // Not the attribute `disabled`: that would take the focus from the button one has just pressed.
  for (const button of document.querySelectorAll(".choice, .undo")) {
    button.setAttribute("aria-disabled", String(isPaused()));
  }
}

function fill(id, text) {
  const box = at(id);
  box.classList.toggle("empty", text === "");
  box.textContent = text === "" ? "(no text)" : text;
  box.scrollTop = 0;
}

function show(next) {
  const before = view;
  view = next;
  for (const stage of ["login", "name", "item", "done"]) at(stage).hidden = stage !== view.stage;
  at("bar").hidden = view.annotator === undefined;
  if (view.annotator !== undefined) {
    at("who").textContent = view.annotator;
    at("progress").max = Math.max(1, view.total);
    at("progress").value = view.done;
    at("progress-text").textContent = `${view.done} of ${view.total} judged`;
    at("total").textContent = String(view.total);
  }
  for (const button of document.querySelectorAll(".undo")) button.hidden = !view.undo;
  if (view.stage === "item" && view.item.token !== before.item?.token) {
    fill("prompt", view.item.prompt);
    fill("left", view.item.left);
    fill("right", view.item.right);
    window.scrollTo(0, 0);
    looked = 0;
    lookedFrom = document.hidden ? null : performance.now();
  }
  shownAt = performance.now();
  setTimeout(markPaused, PAUSE + 1);
  if (view.stage === before.stage) return;
  if (view.stage === "login") at("password").focus();
  if (view.stage === "name") {
    at("names").replaceChildren(...view.names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    at("annotator").value ||= sessionStorage.getItem("annotator") ?? "";
    at("annotator").focus();
  }
}

async function load() {
  const reply = await fetch("api/state", { cache: "no-store" });
  show(await reply.json());
}

async function send(path, body) {
  if (sending) return false;
  sending = true;
  markPaused();
  let good = false;
  try {
    const reply = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const answer = await reply.json();
    if (reply.ok) {
      say("");
      show(answer);
      good = true;
    } else {
      // 401: log in again; 409: another tab, or a verdict that was saved though its answer got lost.
      if (reply.status === 401 || reply.status === 409) await load();
      say(answer.error);
    }
  } catch {
    say("Not saved: the server does not answer. When it is running again, press once more.");
  } finally {
    sending = false;
    markPaused();
  }
  return good;
}

function act(action) {
  if (isPaused()) return;
  if (action === "undo") {
    if (view.undo) send("api/undo", { token: view.undo });
  } else if (view.stage === "item") {
    send("api/verdict", { token: view.item.token, choice: action, seconds: secondsTaken() });
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && lookedFrom !== null) {
    looked += performance.now() - lookedFrom;
    lookedFrom = null;
  } else if (!document.hidden && lookedFrom === null) {
    lookedFrom = performance.now();
  }
});

document.addEventListener("keydown", (event) => {
  const action = KEYS[event.key];
  if (!action || !["item", "done"].includes(view.stage)) return;
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, textarea, select")) return;
  event.preventDefault();
  if (!event.repeat) act(action); // a key that is held down is one verdict
});

for (const button of document.querySelectorAll(".choice")) {
  button.addEventListener("click", () => act(button.dataset.choice));
}
for (const button of document.querySelectorAll(".undo")) button.addEventListener("click", () => act("undo"));

at("leave").addEventListener("click", () => send("api/leave", {}));

at("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const password = at("password").value;
  at("password").value = "";
  await send("api/login", { password });
});

at("name-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = at("annotator").value;
  if (await send("api/annotator", { name })) {
    sessionStorage.setItem("annotator", name); // so that one press goes on after the server was restarted
    at("annotator").value = "";
  }
});

load().catch(() => say("The server does not answer. Start it again, then reload this page."));
