// The queue of questions. The next ones are there before they are needed, and answers are sent behind.

import { askName, offerNames } from "./dialogs.js";
import { onKeys } from "./keys.js";
import { complain } from "./messages.js";
import { undo } from "./page.js";
import { change, post } from "./sender.js";

const AHEAD = 12;
const KEPT = 3; // questions that stay when the others are ranked anew
const element = (id) => document.getElementById(id);

let queue = []; // the first is shown
const settled = new Set(); // ids of questions that were answered or skipped
const answered = []; // for undo, the last at the end
let isFetching = false;
let isExhausted = false;

/** Fetch questions in the place of those that are not next: answers may have made others more useful. */
async function fetchMore() {
  if (isFetching) return;
  isFetching = true;
  try {
    const kept = queue.slice(0, KEPT);
    const skipped = [...settled, ...kept.map((question) => question.id)];
    const fresh = await post("questions/next", { count: AHEAD, skipped });
    isExhausted = fresh.length === 0;
    const present = queue.slice(0, KEPT);
    const known = new Set([...settled, ...present.map((question) => question.id)]);
    queue = [...present, ...fresh.filter((question) => !known.has(question.id)).map(prepared)];
  } catch (error) {
    complain(`The next questions did not come: ${error.message}`, fetchMore);
    return;
  } finally {
    isFetching = false;
  }
  if (!element("question").dataset.id) show();
}

function prepared(question) {
  const pictures = [...question.faces, ...question.compared].slice(0, 4);
  pictures.forEach((face) => { new Image().src = source(face, question); });
  return { ...question, without: new Set() };
}

const source = (face, question) => `/review/pictures/faces/${face.id}${question.faces.length > 6 ? "" : "/large"}`;

const canTakeOut = (question) => question.faces.length > 1 && question.kind !== "same_person";

function show() {
  const question = queue[0];
  const shown = element("question");
  shown.setAttribute("aria-busy", String(!question && !isExhausted));
  shown.dataset.id = question?.id ?? "";
  shown.dataset.kind = question?.kind ?? "";
  for (const part of ["answers", "reason", "asked"]) element(part).hidden = !question;
  element("compared").hidden = !question?.compared.length;
  element("question-naming").hidden = question?.kind !== "name_group";
  if (question) showQuestion(question);
  else element("question-text").textContent = isExhausted ? "There is nothing left to ask." : "Looking for questions …";
}

function showQuestion(question) {
  element("question-text").textContent = question.text;
  element("reason").textContent = question.reason;
  element("take-hint").hidden = !canTakeOut(question);
  showFaces(question);
  const answers = Object.keys(bodies[question.kind]);
  for (const name of ["yes", "no", "other", "not_faces", "ignore"]) {
    button(name).hidden = !answers.includes(name) || (name === "other" && question.kind === "name_group");
  }
  button("yes").firstChild.textContent = canTakeOut(question) ? "Yes, all " : "Yes ";
  button("no").firstChild.textContent = canTakeOut(question) ? "No, none " : "No ";
  const input = element("question-name");
  if (question.kind === "name_group") {
    input.value = question.name ?? "";
    input.focus();
    input.select();
  } else if (document.activeElement === input) input.blur();
}

const button = (name) => document.querySelector(`[data-answer=${name}]`);

function showFaces(question) {
  element("asked-pictures").replaceChildren(...question.faces.map((face, place) => asked(question, face, place)));
  const label = question.kind === "same_person" ? question.name : question.faces[0].photo;
  element("asked-text").textContent = canTakeOut(question) ? "" : label;
  element("compared-pictures").replaceChildren(...question.compared.map((face) => picture(question, face)));
  element("compared-text").textContent = question.compared_text;
}

function picture(question, face) {
  const image = document.createElement("img");
  image.src = source(face, question);
  image.alt = face.photo;
  return image;
}

/** The least likely faces come last: they have the keys from 1 to 9. */
const firstWithKey = (question) => Math.max(0, question.faces.length - 9);

function asked(question, face, place) {
  if (!canTakeOut(question)) return picture(question, face);
  const made = document.createElement("button");
  made.type = "button";
  made.className = "take";
  made.setAttribute("aria-pressed", "true");
  made.append(picture(question, face));
  const number = place - firstWithKey(question) + 1;
  if (number > 0) {
    const key = document.createElement("kbd");
    key.textContent = String(number);
    made.append(key);
  }
  made.addEventListener("click", () => take(place));
  return made;
}

/** Take a face out of the question, or put it back. */
function take(place) {
  const question = queue[0];
  const face = question?.faces[place];
  if (!face || !canTakeOut(question)) return;
  if (!question.without.delete(face.id)) question.without.add(face.id);
  element("asked-pictures").children[place].setAttribute("aria-pressed", String(!question.without.has(face.id)));
}

// Answers: each becomes changes, most become one

const kept = (question) => question.faces.map((face) => face.id).filter((id) => !question.without.has(id));
const all = (question) => question.faces.map((face) => face.id);
const confirm = (question, name) => ({ do: "confirm", face_ids: kept(question), name });

const bodies = {
  is_person: {
    yes: (question) => [
      ...(question.without.size ? [{ do: "reject", face_ids: [...question.without], name: question.name }] : []),
      confirm(question, question.name),
    ],
    no: (question) => [{ do: "reject", face_ids: all(question), name: question.name }],
    other: (question, name) => [confirm(question, name)],
    not_faces: (question) => [{ do: "not_faces", face_ids: kept(question) }],
    ignore: (question) => [{ do: "ignore", face_ids: kept(question) }],
  },
  same_person: {
    yes: (question) => [{ do: "merge", name: question.name, into: question.other_name }],
    no: (question) => [{ do: "reject", face_ids: all(question), name: question.other_name }],
  },
  name_group: {
    other: (question, name) => [confirm(question, name)],
    not_faces: (question) => [{ do: "not_faces", face_ids: kept(question) }],
    ignore: (question) => [{ do: "ignore", face_ids: kept(question) }],
  },
};

async function answer(kind, name = null) {
  const question = queue[0];
  if (!question || (kind !== "skip" && !bodies[question.kind][kind])) return;
  if (kind === "other" && name === null) {
    name = await askName(question.text);
    if (!name) return;
  }
  const changes = kind === "skip" ? [] : bodies[question.kind][kind](question, name);
  if (changes.some((body) => body.face_ids?.length === 0)) return;
  queue.shift();
  settled.add(question.id);
  if (changes.length) sendAnswer(question, changes);
  show();
  if (queue.length <= AHEAD / 2 && !(isExhausted && kind === "skip")) fetchMore();
}

async function sendAnswer(question, changes) {
  answered.push(question);
  showCount();
  const done = await Promise.all(changes.map(change));
  question.step = done.find((each) => each)?.step;
  if (done.includes(null)) putBack(question);
}

function showCount() {
  const count = answered.length;
  element("answered").textContent = count ? `${count} ${count === 1 ? "answer" : "answers"} so far` : "";
}

function putBack(question) {
  answered.splice(answered.indexOf(question), 1);
  settled.delete(question.id);
  queue.unshift(question);
  show();
  showCount();
}

// Undo takes back all that an answer changed, and shows its question again.
addEventListener("undo", (event) => {
  const question = answered.at(-1);
  if (!question) return;
  event.preventDefault();
  undo(() => question.step ?? null).then((isDone) => isDone && putBack(question));
});

element("answers").addEventListener("click", (event) => {
  const chosen = event.target.closest("[data-answer]");
  if (chosen) answer(chosen.dataset.answer);
});
element("question-naming").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = element("question-name").value.trim();
  if (name) answer("other", name);
});
element("question-name").addEventListener("keydown", (event) => event.key === "Escape" && event.target.blur());
onKeys({
  y: () => answer("yes"),
  n: () => answer("no"),
  e: () => (queue[0]?.kind === "name_group" ? element("question-name").focus() : answer("other")),
  x: () => answer("not_faces"),
  i: () => answer("ignore"),
  s: () => answer("skip"),
  ...Object.fromEntries(
    [...Array(9).keys()].map((key) => [String(key + 1), () => queue[0] && take(firstWithKey(queue[0]) + key)]),
  ),
});
offerNames();
fetchMore();
