// Short messages at the lower edge, also for screen readers.

const place = () => document.getElementById("messages");
const SHOWN_MS = 5000;

/** Show what was done; it goes by itself, and takes the place of the message before. */
export function tell(text) {
  for (const old of place().querySelectorAll(".done")) old.remove();
  const message = add(text, "done");
  setTimeout(() => message.remove(), SHOWN_MS);
}

/** Show what failed, until it is closed; `again`, where there is one, is offered. */
export function complain(text, again = null) {
  const message = add(text, "failed");
  if (again) message.append(button("Try again", () => { message.remove(); again(); }));
  message.append(button("Close", () => message.remove()));
  return message;
}

function add(text, kind) {
  const message = document.createElement("p");
  message.className = kind;
  message.append(text);
  place().append(message);
  return message;
}

function button(text, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(text);
  made.addEventListener("click", onClick);
  return made;
}
