// A grid of faces: going through it, selecting, and what is done with the selected ones.

import { askName } from "./dialogs.js";
import { onKeys } from "./keys.js";
import { change } from "./sender.js";
import { growing } from "./tiles.js";

const list = document.querySelector("[data-grid]");
const bar = document.getElementById("bar");
let last = null; // where a range begins

const tiles = () => [...list.querySelectorAll(".face:not(.gone)")];
const selected = () => tiles().filter((tile) => tile.getAttribute("aria-selected") === "true");

/** The selected faces; if there are none, the one with the focus. */
export function chosen() {
  const some = selected();
  if (some.length) return some;
  const focused = document.activeElement?.closest?.(".face");
  return focused ? [focused] : [];
}

export const ids = (faces) => faces.map((face) => face.dataset.id);
export const person = list.dataset.name;

/** Do something with the chosen faces, which are left unselected: by a button, or by its key. */
export function onAction(actions, keys) {
  const act = async (name) => {
    const faces = chosen();
    if (!faces.length) return false;
    const answered = actions[name](faces);
    return answered;
  };
  bar.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    if (button.dataset.action === "all") selectAll();
    else act(button.dataset.action);
  });
  onKeys(Object.fromEntries(Object.entries(keys).map(([key, name]) => [key, () => { act(name); }])));
}

/** Mark faces as being in another state, and go on to the next one. */
export function settle(faces, state) {
  const next = nextAfter(faces);
  for (const face of faces) {
    face.classList.remove("confirmed", "named", "unsure", "unknown", "not_a_face", "ignored");
    face.classList.add(state);
    face.querySelector(".note").textContent = state === "confirmed" ? "checked" : "";
  }
  unselect();
  goTo(next);
}

/** Take faces out of the grid, and go on to the next one. Returns a function that puts them back. */
export function leave(faces) {
  const next = nextAfter(faces);
  faces.forEach((face) => face.classList.add("gone"));
  unselect();
  goTo(next);
  return () => faces.forEach((face) => face.classList.remove("gone"));
}

/** Send a change; the faces leave at once, and come back where it is refused. */
export async function leaveBy(faces, body) {
  const putBack = leave(faces);
  if (!(await change(body))) putBack();
}

/** Actions that all grids have. */
export const common = {
  not_faces: (faces) => leaveBy(faces, { do: "not_faces", face_ids: ids(faces) }),
  ignore: (faces) => leaveBy(faces, { do: "ignore", face_ids: ids(faces) }),
  open: ([face]) => { location.href = `/review/photo?id=${face.dataset.photo}#face-${face.dataset.id}`; },
  async move(faces) {
    const name = await askName(faces.length === 1 ? "Who is this?" : `Who are these ${faces.length} faces?`);
    if (name) await leaveBy(faces, { do: "confirm", face_ids: ids(faces), name });
  },
};
export const commonKeys = { x: "not_faces", i: "ignore", o: "open", e: "move" };

function nextAfter(faces) {
  const all = tiles();
  const place = all.indexOf(faces.at(-1));
  return all.slice(place + 1).find((tile) => !faces.includes(tile)) ?? all.find((tile) => !faces.includes(tile));
}

function unselect() {
  for (const tile of list.querySelectorAll("[aria-selected=true]")) tile.setAttribute("aria-selected", "false");
  showBar();
}

function selectAll() {
  tiles().forEach((tile) => tile.setAttribute("aria-selected", "true"));
  showBar();
}

function goTo(tile) {
  if (!tile) return;
  for (const other of list.querySelectorAll(".face[tabindex='0']")) other.tabIndex = -1;
  tile.tabIndex = 0;
  tile.focus({ preventScroll: true });
  tile.scrollIntoView({ block: "nearest" });
  showBar();
}

function toggle(tile) {
  tile.setAttribute("aria-selected", String(tile.getAttribute("aria-selected") !== "true"));
  last = tile;
  showBar();
}

function selectRange(to) {
  const all = tiles();
  const [start, end] = [all.indexOf(last ?? to), all.indexOf(to)].sort((one, other) => one - other);
  all.slice(Math.max(0, start), end + 1).forEach((tile) => tile.setAttribute("aria-selected", "true"));
  showBar();
}

function showBar() {
  const some = chosen();
  bar.classList.toggle("shown", some.length > 0);
  document.getElementById("bar-text").textContent =
    some.length > 1 ? `${some.length} faces are selected` : (some[0]?.dataset.why ?? "");
}

/** The tile above or below, by where the tiles lie. */
function vertically(from, direction) {
  const here = from.getBoundingClientRect();
  const others = tiles().map((tile) => ({ tile, at: tile.getBoundingClientRect() }));
  const rows = others.filter(({ at }) => (direction > 0 ? at.top > here.top + 8 : at.top < here.top - 8));
  const nearest = rows.map(({ at }) => Math.abs(at.top - here.top)).sort((one, other) => one - other)[0];
  return rows
    .filter(({ at }) => Math.abs(Math.abs(at.top - here.top) - nearest) < 8)
    .sort((one, other) => Math.abs(one.at.left - here.left) - Math.abs(other.at.left - here.left))[0]?.tile;
}

function neighbour(from, key) {
  const all = tiles();
  const place = all.indexOf(from);
  switch (key) {
    case "ArrowRight": return all[place + 1];
    case "ArrowLeft": return all[place - 1];
    case "ArrowDown": return vertically(from, 1);
    case "ArrowUp": return vertically(from, -1);
    case "Home": return all[0];
    case "End": return all.at(-1);
    default: return undefined;
  }
}

list.addEventListener("click", (event) => {
  const tile = event.target.closest(".face");
  if (!tile) return;
  if (event.shiftKey && last) selectRange(tile);
  else toggle(tile);
  goTo(tile);
});
list.addEventListener("dblclick", (event) => {
  const tile = event.target.closest(".face");
  if (tile) common.open([tile]);
});
list.addEventListener("focusin", showBar);
list.addEventListener("keydown", (event) => {
  const tile = event.target.closest(".face");
  if (!tile) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "a") selectAll();
  else if (event.key === " ") toggle(tile);
  else {
    const next = neighbour(tile, event.key);
    if (!next) return;
    if (event.shiftKey) {
      last ??= tile;
      if (!selected().length) last = tile;
      selectRange(next);
    }
    goTo(next);
  }
  event.preventDefault();
});
onKeys({ Escape: unselect });

growing(list);
if (tiles().length) tiles()[0].tabIndex = 0;
