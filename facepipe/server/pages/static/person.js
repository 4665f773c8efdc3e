// The page of a person.

import { askName, askSure } from "./dialogs.js";
import { common, commonKeys, ids, leaveBy, onAction, person, settle } from "./grid.js";
import { tellThere } from "./page.js";
import { change, send } from "./sender.js";

const head = document.querySelector("[data-person]");

onAction(
  {
    ...common,
    confirm(faces) {
      settle(faces, "confirmed");
      return change({ do: "confirm", face_ids: ids(faces), name: person });
    },
    reject: (faces) => leaveBy(faces, { do: "reject", face_ids: ids(faces), name: person }),
    reset(faces) {
      settle(faces, "named");
      return change({ do: "reset", face_ids: ids(faces) });
    },
    async set_cover([face]) {
      const isDone = await change({ do: "set_cover", name: person, face_id: face.dataset.id });
      if (isDone) head.querySelector(".cover").src = `/review/pictures/faces/${face.dataset.id}/large`;
    },
  },
  { ...commonKeys, y: "confirm", n: "reject", r: "reset", c: "set_cover" },
);

const actions = {
  async confirm_all() {
    const { faces, checked } = head.dataset;
    const text = `${faces - checked} faces become checked, also those that are not shown yet.`;
    if (!(await askSure(`Are all ${faces} faces ${person}?`, text, "All are right"))) return;
    follow(await change({ do: "confirm_all", name: person }), person);
  },
  async rename() {
    const name = await askName(`Rename ${person}`, { value: person });
    if (name && name !== person) follow(await change({ do: "rename", name: person, new_name: name }), name);
  },
  async merge() {
    const into = await askName(`${person} is the same person as`);
    if (into && into !== person) follow(await change({ do: "merge", name: person, into }), into);
  },
  async hide(button) {
    const isHidden = button.dataset.hidden !== "true";
    if (await change({ do: "set_hidden", name: person, is_hidden: isHidden })) leaveTo("/review/people");
  },
  async erase() {
    const { faces, photos, checked, templates } = head.dataset;
    const text =
      `${faces} faces in ${photos} photos lose this name, ${checked} answers and ${templates} enrolled faces ` +
      "are erased, with their vectors. The photos themselves stay. This can't be undone.";
    if (!(await askSure(`Erase ${person}?`, text, "Erase", { isDangerous: true }))) return;
    const answer = await send("erase", { name: person });
    if (answer) {
      tellThere(answer.label);
      leaveTo("/review/people");
    }
  },
};

function follow(answer, name) {
  if (!answer) return;
  tellThere(answer.label);
  leaveTo(`/review/person?name=${encodeURIComponent(name)}`);
}

const leaveTo = (address) => { location.href = address; };

head.addEventListener("click", (event) => {
  const button = event.target.closest("[data-person-action]");
  if (button) actions[button.dataset.personAction](button);
});
