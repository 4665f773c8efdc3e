// Changes are sent one after the other, in the order in which they were made, while the reader goes on.

import { complain, tell } from "./messages.js";

const waiting = [];
const listeners = new Set();
let isSending = false;

/** Post JSON and return the answer; throws an Error with the server's message. `error.isFinal`: it refused. */
export async function post(path, body) {
  const response = await fetch(`/review/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: JSON.stringify(body),
  });
  if (response.ok) return response.json();
  const answer = await response.json().catch(() => ({}));
  const id = response.status >= 500 && answer.request_id ? ` (request ${answer.request_id})` : "";
  const error = new Error((answer.message || `the server answered ${response.status}`) + id);
  error.isFinal = response.status < 500 && response.status !== 429;
  throw error;
}

/** Send a change (or what a function makes when its turn comes) after those that wait; resolves to the server's answer, or to null where it refused. */
export function send(path, body) {
  return new Promise((resolve) => {
    waiting.push({ path, body, resolve });
    announce();
    if (!isSending) sendAll();
  });
}

export const change = (body) => send("changes", body);

/** Call a function with the number of changes that wait, whenever it changes. */
export function onWaiting(listener) {
  listeners.add(listener);
}

async function sendAll() {
  isSending = true;
  while (waiting.length) {
    const { path, body, resolve } = waiting[0];
    try {
      const answer = await post(path, typeof body === "function" ? body() : body);
      waiting.shift();
      if (answer.label) tell(answer.label);
      resolve(answer);
    } catch (error) {
      if (!error.isFinal) {
        complain(`Not saved yet: ${error.message}`, sendAll);
        break;
      }
      waiting.shift();
      complain(error.message);
      resolve(null);
    }
    announce();
  }
  isSending = false;
}

function announce() {
  for (const listener of listeners) listener(waiting.length);
}

addEventListener("beforeunload", (event) => {
  if (waiting.length) event.preventDefault();
});
