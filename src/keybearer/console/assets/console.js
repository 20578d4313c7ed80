// Small helpers for server-rendered pages. Without this script everything but testing, detecting and the set-up link works.
// Text only ever goes into textContent: the pages run under a Content-Security-Policy with trusted types and no inline script.

import { all, call } from "./api.js";

// On a telephone the navigation is wider than the screen: it begins where one is.
document.querySelector("header nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// The set-up token stands in the fragment, which browsers do not send; it goes into the form and out of the address bar.
for (const form of all("form[data-setup]")) {
  if (location.hash.length > 1) form.elements.token.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
}

// What was done is said once: a page that is loaded again does not say it again.
if (document.querySelector("[data-notice]")) {
  const here = new URL(location);
  here.searchParams.delete("done");
  history.replaceState(null, "", here);
}

for (const button of all("[data-show]")) {
  const field = button.parentElement.querySelector("[data-value]");
  button.addEventListener("click", () => {
    const shown = field.type === "text";
    field.type = shown ? "password" : "text";
    button.textContent = shown ? "Show" : "Hide";
    button.setAttribute("aria-pressed", String(!shown));
  });
}

for (const place of all("[data-copy]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet copy";
  button.textContent = "Copy";
  if (place.dataset.copy) button.setAttribute("aria-label", `Copy ${place.dataset.copy}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(place.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  place.after(" ", button);
}

for (const button of all("[data-open]")) {
  button.addEventListener("click", () => document.getElementById(button.dataset.open).showModal());
}
for (const button of all("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

// "resource=mine, region=us-east-1", as the form's field takes it.
const named = (text) =>
  Object.fromEntries(
    text
      .split(",")
      .filter((part) => part.includes("="))
      .map((part) => [part.slice(0, part.indexOf("=")).trim(), part.slice(part.indexOf("=") + 1).trim()]),
  );

// The answer appears beside the button that asked, on a page of many.
async function showTest(button, path, body) {
  const result = button.closest(".card, .panel").querySelector("[data-result]");
  result.className = "result";
  result.textContent = "Testing…";
  try {
    const answer = await call(path, body);
    const models = answer.models.length ? ` ${answer.models.length} models found.` : "";
    result.classList.add(answer.status === "ok" ? "good" : "bad");
    result.textContent = `${answer.status === "ok" ? "Works" : answer.status.replaceAll("_", " ")} (${Math.round(answer.latency_ms)} ms).${models} ${answer.message}`;
  } catch (error) {
    result.classList.add("bad");
    result.textContent = error.message;
  }
}

for (const button of all("[data-test]")) button.addEventListener("click", () => showTest(button, `/secrets/${button.dataset.test}/test`));

for (const button of all("[data-test-path]")) button.addEventListener("click", () => showTest(button, button.dataset.testPath));

for (const form of all("[data-secret-form]")) {
  const { provider, value, reference: kept } = form.elements;
  const require = () => (value.required = !kept.value.trim());
  kept.addEventListener("input", require);
  require();
  const test = form.querySelector("[data-test-unsaved]");
  test.addEventListener("click", () => {
    const team_id = form.elements.team_id?.value || null;
    const given = kept.value.trim() ? { reference: kept.value.trim(), team_id } : { value: value.value };
    if (form.reportValidity()) showTest(test, "/secrets/test", { provider: provider.value, ...given, parameters: named(form.elements.parameters.value) });
  });
  value.addEventListener("paste", () =>
    setTimeout(async () => {
      const { providers } = await call("/secrets/detect", { value: value.value });
      if (providers.length !== 1) return;
      provider.value = providers[0];
      form.querySelector("[data-detected]").textContent = `This looks like a key for ${provider.selectedOptions[0].textContent}.`;
    }),
  );
}
