// Keys of the page.

/** Whether a key is being typed into a field, or belongs to a dialog or the browser. */
export function isTyping(event) {
  return (
    event.defaultPrevented ||
    event.isComposing ||
    event.ctrlKey || event.metaKey || event.altKey ||
    event.target.closest?.("input, select, textarea, dialog") !== null ||
    document.querySelector("dialog[open]") !== null
  );
}

/** Call functions by key: `onKeys({ y: () => ... })`. One that returns false leaves the key alone. */
export function onKeys(functions) {
  addEventListener("keydown", (event) => {
    if (isTyping(event)) return;
    const act = functions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act && act(event) !== false) event.preventDefault();
  });
}
