// Questions that are asked in a dialog.

const element = (id) => document.getElementById(id);

/** Ask for a name; resolves to it, or to null. Names that are known are offered. */
export async function askName(title, { value = "", isOptional = false } = {}) {
  offerNames();
  const input = element("name-input");
  element("name-title").textContent = title;
  input.value = value;
  input.required = !isOptional;
  const answer = await ask(element("name-dialog"), () => input.select());
  const name = input.value.trim();
  return answer === "ok" && (name || isOptional) ? name : null;
}

/** Ask whether something is really wanted; resolves to true or false. */
export async function askSure(title, text, yes, { isDangerous = false } = {}) {
  element("sure-title").textContent = title;
  element("sure-text").textContent = text;
  element("sure-ok").textContent = yes;
  element("sure-ok").className = isDangerous ? "danger" : "primary";
  return (await ask(element("sure-dialog"))) === "ok";
}

/** Fill the list of names that fields offer; it is fetched anew, since names come and go. */
export async function offerNames() {
  const response = await fetch("/review/names", { headers: { Accept: "application/json" } });
  if (!response.ok) return;
  const options = (await response.json()).map((name) => {
    const option = document.createElement("option");
    option.value = name;
    return option;
  });
  element("names").replaceChildren(...options);
}

function ask(dialog, onShown = () => {}) {
  const before = document.activeElement;
  return new Promise((resolve) => {
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => {
      before?.focus?.();
      resolve(dialog.returnValue);
    }, { once: true });
    dialog.showModal();
    onShown();
  });
}

// Enter in a field takes the first submit button of a form, which cancels.
element("name-input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  const form = event.target.form;
  form.requestSubmit(form.querySelector("[value=ok]"));
});
