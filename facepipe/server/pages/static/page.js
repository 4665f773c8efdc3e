// What every page does: help, undo, going to other pages, and how much is still to be done.

import { tell } from "./messages.js";
import { isTyping, onKeys } from "./keys.js";
import { onWaiting, send } from "./sender.js";

const element = (id) => document.getElementById(id);
const NAMING_POLL_MS = 1500;
const CHANGES_POLL_MS = 5000;
const GO_MS = 1500;
let unsent = 0;
let photosLeft = 0;
let isReadOnly = false;
let shownVersion = null;
let pollTimer = 0;

/** Take the last step back, or all down to one: its number, or a function that knows it later. Resolves to whether. */
export async function undo(to = null) {
  const answer = await send("undo", () => ({ to: typeof to === "function" ? to() : to }));
  if (!answer) return false;
  tell(answer.label ? `Undone: ${answer.label}` : "There is nothing to undo.");
  return answer.label !== null;
}

/** Undo, and show the page anew, unless its own script knows better. */
async function undoHere() {
  if (!dispatchEvent(new CustomEvent("undo", { cancelable: true }))) return;
  const isDone = await undo();
  if (!isDone) return;
  tellThere(document.querySelector("#messages .done")?.textContent ?? "");
  location.reload();
}

function tellKept() {
  const text = sessionStorage.getItem("message");
  sessionStorage.removeItem("message");
  if (text) tell(text);
}

/** Tell something on the page that is opened next. */
export function tellThere(text) {
  sessionStorage.setItem("message", text);
}

function showWaiting() {
  const parts = [];
  if (unsent) parts.push(`${unsent} to save`);
  if (isReadOnly) parts.push("another facepipe works with these photos: look only");
  if (photosLeft) parts.push(`naming ${photosLeft} ${photosLeft === 1 ? "photo" : "photos"} again`);
  element("waiting").textContent = parts.join(", ");
}

/** Follow what changes: here, in another window, by a command in a terminal. */
async function followChanges() {
  clearTimeout(pollTimer);
  const response = await fetch("/review/state", { headers: { Accept: "application/json" } }).catch(() => null);
  const wasNaming = photosLeft || isReadOnly;
  let version = shownVersion;
  if (response?.ok) ({ version, photos_left: photosLeft, is_read_only: isReadOnly } = await response.json());
  shownVersion ??= version;
  if ((wasNaming || version !== shownVersion) && !photosLeft && !isReadOnly) {
    element("fresh").hidden = document.querySelector("[data-kind]") !== null;
  }
  showWaiting();
  clearTimeout(pollTimer); // of a call meanwhile
  pollTimer = setTimeout(followChanges, photosLeft || isReadOnly ? NAMING_POLL_MS : CHANGES_POLL_MS);
}

onWaiting((count) => {
  if (unsent && !count) followChanges();
  unsent = count;
  showWaiting();
});

let wentAt = 0;
addEventListener("keydown", (event) => {
  const isEditing = Boolean(event.target.closest("input")?.value); // has an undo of its own
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !isEditing) {
    event.preventDefault();
    undoHere();
    return;
  }
  if (isTyping(event)) return;
  if (event.key === "g") {
    wentAt = event.timeStamp;
    event.preventDefault();
  } else if (event.timeStamp - wentAt < GO_MS) {
    wentAt = 0;
    const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
    if (!link) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    link.click();
  }
}, { capture: true });

onKeys({ "?": () => element("help-dialog").showModal() });
for (const marked of document.querySelectorAll("[data-key]")) {
  onKeys({ [marked.dataset.key]: () => (marked.matches("input") ? marked.focus() : marked.click()) });
}
element("help").addEventListener("click", () => element("help-dialog").showModal());
element("fresh").addEventListener("click", () => location.reload());
element("undo").addEventListener("click", undoHere);
document.querySelector(".top nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
tellKept();
followChanges();
