// The page of a photo: answers about its faces, and boxes drawn by hand.

import { askName } from "./dialogs.js";
import { onKeys } from "./keys.js";
import { tellThere } from "./page.js";
import { change } from "./sender.js";

const head = document.querySelector("[data-photo]");
const found = document.getElementById("found");
const boxes = document.getElementById("boxes");
const drawButton = document.getElementById("draw");

async function finish(body) {
  const answer = await change(body);
  if (!answer) return;
  tellThere(answer.label);
  location.reload();
}

const actions = {
  confirm: (id, name) => finish({ do: "confirm", face_ids: [id], name }),
  reject: (id, name) => finish({ do: "reject", face_ids: [id], name }),
  not_faces: (id) => finish({ do: "not_faces", face_ids: [id] }),
  ignore: (id) => finish({ do: "ignore", face_ids: [id] }),
  reset: (id) => finish({ do: "reset", face_ids: [id] }),
  async move(id) {
    const name = await askName("Who is this?");
    if (name) await finish({ do: "confirm", face_ids: [id], name });
  },
};

found?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  const face = button?.closest("[data-id]");
  if (face) actions[button.dataset.action](face.dataset.id, face.dataset.name);
});

// A box and its entry in the list are shown together.

const both = (id) => document.querySelectorAll(`[data-id="${CSS.escape(id)}"]`);
const light = (id, isLit) => both(id).forEach((part) => part.classList.toggle("lit", isLit));
for (const part of document.querySelectorAll("[data-id]")) {
  part.addEventListener("pointerenter", () => light(part.dataset.id, true));
  part.addEventListener("pointerleave", () => light(part.dataset.id, false));
  part.addEventListener("focusin", () => light(part.dataset.id, true));
  part.addEventListener("focusout", () => light(part.dataset.id, false));
}
boxes?.addEventListener("click", (event) => {
  const box = event.target.closest("[data-id]");
  if (box && !isDrawing()) document.getElementById(`face-${box.dataset.id}`).querySelector("button, a").focus();
});

// Drawing

let drawn = null; // the rectangle
let start = null; // where the pointer went down

const isDrawing = () => boxes?.classList.contains("drawing") ?? false;

function setDrawing(isOn) {
  boxes.classList.toggle("drawing", isOn);
  drawButton.setAttribute("aria-pressed", String(isOn));
  document.getElementById("draw-hint").hidden = !isOn;
  drawn?.remove();
  drawn = start = null;
  if (!isOn) return;
  const { width, height } = boxes.viewBox.baseVal;
  const side = Math.min(width, height) / 5;
  drawn = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  drawn.classList.add("drawn");
  boxes.append(drawn);
  place((width - side) / 2, (height - side) / 2, side, side);
  boxes.focus({ preventScroll: true });
}

function place(left, top, width, height) {
  for (const [name, value] of Object.entries({ x: left, y: top, width, height })) drawn.setAttribute(name, value);
}

/** Where a pointer is, in pixels of the photo, and inside it. */
function pointOf(event) {
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(boxes.getScreenCTM().inverse());
  const { width, height } = boxes.viewBox.baseVal;
  return { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
}

async function take() {
  const { x, y, width, height } = drawn.getBBox();
  const name = await askName("Who is this?", { isOptional: true });
  if (name === null) return;
  await finish({
    do: "draw_face",
    photo_id: Number(head.dataset.photo),
    box_xyxy: [x, y, x + width, y + height],
    name: name || null,
  });
}

function byKey(event) {
  const step = boxes.viewBox.baseVal.width / 100;
  const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [];
  if (event.key === "Enter") take();
  else if (event.key === "Escape") setDrawing(false);
  else if (dx === undefined) return;
  else {
    const { x, y, width, height } = drawn.getBBox();
    if (event.shiftKey) place(x, y, Math.max(step, width + dx), Math.max(step, height + dy));
    else place(x + dx, y + dy, width, height);
  }
  event.preventDefault();
}

if (drawButton) {
  drawButton.addEventListener("click", () => setDrawing(!isDrawing()));
  onKeys({ d: () => setDrawing(!isDrawing()) });
  boxes.addEventListener("keydown", (event) => isDrawing() && byKey(event));
  boxes.addEventListener("pointerdown", (event) => {
    if (!isDrawing()) return;
    start = pointOf(event);
    boxes.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  boxes.addEventListener("pointermove", (event) => {
    if (!start) return;
    const end = pointOf(event);
    place(Math.min(start.x, end.x), Math.min(start.y, end.y), Math.abs(end.x - start.x), Math.abs(end.y - start.y));
  });
  boxes.addEventListener("pointerup", () => {
    if (!start) return;
    start = null;
    take();
  });
}
