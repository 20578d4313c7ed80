// What the pages' scripts share: asking the API, and putting what it says into the page, only ever as text.

export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An error that the API explained. */
export class Refused extends Error {
  constructor({ detail = "That did not work.", hint, fields, code }) {
    super([detail, hint].filter(Boolean).join(" "));
    Object.assign(this, { detail, hint, code, fields: fields ?? [] });
  }
}

const UNREACHED = { detail: "The server did not answer.", hint: "Check that it runs and that you are connected, then try again." };

/** Send JSON to the API; returns the response. Throws `Refused`. */
export async function send(path, body, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: body ? { "content-type": "application/json" } : {},
      body: body && JSON.stringify(body),
      ...options,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(UNREACHED);
  }
  if (response.ok) return response;
  throw new Refused(await response.json().catch(() => ({ detail: `The server answered ${response.status}.`, hint: "Try again in a moment." })));
}

export const call = async (path, body, options) => (await send(`/api/v1${path}`, body, options)).json();

/** Make an element; strings among the children are text. */
export function made(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Say in an alert what happened, why, and what to do next; nothing: take it away. */
export function explain(place, error) {
  place.replaceChildren();
  if (!error) return;
  const about = (error.fields ?? []).filter(({ message }) => message !== error.detail).map(({ field, message }) => made("div", {}, `${field}: ${message}`));
  const hint = error.hint ? [made("div", { class: "hint" }, error.hint)] : [];
  place.append(made("div", { class: "problem" }, made("strong", {}, error.detail ?? error.message), ...about, ...hint));
}
