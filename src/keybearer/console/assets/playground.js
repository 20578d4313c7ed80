// A conversation with any model through POST /api/chat. It is in this page's memory and ends with it.

import { explain, made, Refused, send } from "./api.js";

const form = document.querySelector("[data-playground]");
const part = (name) => document.querySelector(`[data-${name}]`);
const [message, model, system, temperature, most] = ["message", "model", "system", "temperature", "most"].map(part);
const [talk, problem, ask, stop, anew] = ["talk", "problem", "send", "stop", "anew"].map(part);
const said = []; // what the model is told of the conversation so far
let under = null; // the call under way

/** Yield the events of a stream: [name, data]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const [, name] = event.match(/^event: (.*)$/m);
      const [, data] = event.match(/^data: (.*)$/m);
      yield [name, JSON.parse(data)];
    }
  }
}

function money(cost) {
  if (cost === null) return "cost unknown";
  return `$${cost && cost < 0.01 ? cost.toFixed(6).replace(/0+$/, "") : cost.toFixed(2)}`;
}

/** Whose key served, what it consumed and cost. */
function receipt({ receipt, usage, cost, finishReason }, seconds) {
  const whose = { user: "your key", team: "a team's key", system: "the system's key", model: "the model's own key" };
  const key = whose[receipt.keySource] ?? `key of ${receipt.keySource}`;
  const served = receipt.keySource === "user" ? made("a", { href: `/secrets/${receipt.secretId}` }, key) : key;
  const tokens = usage.inputTokens === null ? "tokens unknown" : `${usage.inputTokens} tokens in, ${usage.outputTokens ?? "unknown"} out`;
  const facts = [`${receipt.provider} / ${receipt.model}`, tokens, money(cost), `${seconds} s`];
  if (finishReason !== "stop") facts.push({ length: "cut at its limit", filter: "stopped by the provider's filter" }[finishReason] ?? finishReason);
  return made("p", { class: "receipt" }, "Served with ", served, ` · ${facts.join(" · ")} · `, made("code", {}, receipt.requestId));
}

function turn(role, text, who) {
  const body = made("div", { class: "words" }, text);
  const item = made("div", { class: role }, made("strong", {}, who), body);
  talk.append(item);
  return { item, body };
}

function busy(is) {
  talk.setAttribute("aria-busy", String(is));
  ask.disabled = is;
  stop.hidden = !is;
}

async function converse(text) {
  const named = model.value.trim();
  const instructions = system.value.trim() ? [{ role: "system", content: system.value.trim() }] : [];
  const asked = { role: "user", content: text };
  const body = { modelId: named, messages: [...instructions, ...said, asked], stream: true };
  if (temperature.value) body.temperature = Number(temperature.value);
  if (most.value) body.maxTokens = Number(most.value);

  const mine = turn("user", text, "You");
  const theirs = turn("assistant", "", named);
  const begun = performance.now();
  let answer = "";
  under = new AbortController();
  busy(true);
  try {
    const response = await send("/api/chat", body, { signal: under.signal });
    let done = null;
    for await (const [name, data] of events(response)) {
      if (name === "delta") theirs.body.textContent = answer += data.text;
      else if (name === "error") throw new Refused(data);
      else if (name === "done") done = data;
    }
    if (!done) throw new Refused({ detail: "The answer was cut off.", hint: "Send the message again." });
    theirs.item.append(receipt(done, ((performance.now() - begun) / 1000).toFixed(1)));
    said.push(asked, { role: "assistant", content: answer });
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (stopped || answer) theirs.item.append(made("p", { class: "receipt" }, stopped ? "Stopped. What came until then is on record." : "Cut off."));
    if (!answer) {
      mine.item.remove();
      theirs.item.remove();
      message.value ||= text; // what was typed is not lost
    } else if (stopped) said.push(asked, { role: "assistant", content: answer });
    if (!stopped) explain(problem, error instanceof Refused ? error : new Refused({ detail: "The connection broke.", hint: "Send the message again." }));
  } finally {
    under = null;
    busy(false);
    anew.hidden = !talk.children.length;
    message.focus();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value.trim();
  if (under || !text) return;
  explain(problem);
  message.value = "";
  converse(text);
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
stop.addEventListener("click", () => under?.abort());
anew.addEventListener("click", () => {
  under?.abort();
  said.length = 0;
  talk.replaceChildren();
  explain(problem);
  anew.hidden = true;
  message.focus();
});
