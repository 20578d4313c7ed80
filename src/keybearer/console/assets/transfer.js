// Import and export. Values are in this page's memory and in requests to the API, nowhere else: no form that a browser keeps has them,
// and what the API answers of an import holds none.

import { call, explain, made } from "./api.js";

const OUTCOMES = {
  create: ["good", "new"],
  update: ["soon", "new version"],
  unchanged: ["off", "is there already"],
  unknown: ["off", "left out"],
  conflict: ["bad", "conflict"],
  invalid: ["bad", "cannot be stored"],
};
const NOT_STORED = {
  conflict: "“Replace values” takes the file's values for secrets that are there; “Leave out what fails” keeps yours.",
  invalid: "Mend these entries, or tick “Leave out what fails”.",
};

const size = (count, one, many = `${one}s`) => `${count.toLocaleString()} ${count === 1 ? one : many}`;

/** What a file seems to be, by its name, else by how it begins. */
function formatOf(text, name = "") {
  const ending = name.toLowerCase().match(/\.(json|csv)$/)?.[1];
  if (ending) return ending;
  const start = text.trimStart();
  if (/^[[{]/.test(start)) return "json";
  const first = start.split(/\r?\n/, 1)[0];
  return !first.includes("=") && /(^|,)"?(value|api_?key|apiKey)"?(,|$)/i.test(first) ? "csv" : "env";
}

function summary({ counts, dry_run }) {
  const will = dry_run ? { create: "to be added", update: "to get a new version" } : { create: "added", update: "with a new version" };
  const words = { ...will, unchanged: "there already", unknown: "left out", conflict: "in conflict", invalid: "not storable" };
  return Object.entries(words).filter(([outcome]) => counts[outcome]).map(([outcome, said]) => `${counts[outcome]} ${said}`).join(", ");
}

function rowOf(result) {
  const [look, said] = OUTCOMES[result.outcome];
  const cell = (text) => made("td", {}, text);
  return made(
    "tr",
    {},
    made("td", {}, result.label || "–", made("br"), made("span", { class: "faint" }, result.place)),
    made("td", {}, made("span", { class: `badge ${look}` }, said)),
    cell(result.provider),
    cell(result.kind === "model" ? `model ${result.name}` : result.name),
    made("td", {}, result.preview ? made("code", {}, result.preview) : ""),
    made("td", { class: "wraps" }, result.reason),
  );
}

function importing(form) {
  const part = (name) => document.querySelector(`[data-${name}]`);
  const [file, text, said, format, owner] = ["file", "text", "file-said", "format", "owner"].map(part);
  const [problem, report, title, rows, run, done] = ["problem", "report", "report-title", "rows", "run", "done"].map(part);
  const asked = said.textContent;
  let chosen = null; // the text of a chosen file: it is not put on the screen

  // What was previewed is what is imported: whatever changes, it must be looked at anew.
  const stale = () => {
    report.hidden = true;
    explain(problem);
  };
  const forget = () => {
    chosen = null;
    text.value = file.value = part("encryption").value = "";
    said.textContent = asked;
  };
  const opened = async () => {
    const [picked] = file.files;
    chosen = null;
    said.textContent = asked;
    if (!picked) return;
    try {
      if (picked.size > Number(form.dataset.limit)) throw new Error(`${picked.name} is larger than this page takes. Split it.`);
      chosen = new TextDecoder("utf-8", { fatal: true }).decode(await picked.arrayBuffer());
      text.value = "";
      format.value = formatOf(chosen, picked.name);
      said.textContent = `${picked.name}, ${size(picked.size, "byte")}. It is read; nothing has been sent.`;
    } catch (error) {
      file.value = "";
      const isText = !(error instanceof TypeError);
      explain(problem, isText ? error : { detail: `${picked.name} is not UTF-8 text.`, hint: "Save it as UTF-8, or paste it instead." });
    }
  };

  const ask = async (dry_run) => {
    const body = { format: format.value, content: format.value === "environment" ? "" : (chosen ?? text.value), dry_run };
    for (const box of form.querySelectorAll("[data-option]")) body[box.dataset.option] = box.checked;
    if (owner.value === "system") body.system = true;
    else if (owner.value) body.team_id = owner.value;
    if (format.value !== "environment" && !body.content.trim()) {
      throw { detail: "There is nothing to import yet.", hint: "Choose a file, or paste its text." };
    }
    const opens = part("encryption").value.trim();
    try {
      if (opens) body.encryption = JSON.parse(opens);
    } catch {
      throw { detail: "What the values open with is not JSON.", hint: 'For example {"scheme": "fernet", "keys": ["…"]}.' };
    }
    return call("/import", body);
  };

  const show = (answer) => {
    rows.replaceChildren(...answer.results.map(rowOf));
    const news = (answer.counts.create ?? 0) + (answer.counts.update ?? 0);
    title.textContent = answer.dry_run ? `Preview: ${summary(answer)}` : `Imported: ${summary(answer)}`;
    if (!answer.applied) {
      title.textContent = answer.dry_run ? `Nothing would be stored: ${summary(answer)}` : `Nothing was stored: ${summary(answer)}`;
      const hint = Object.keys(NOT_STORED).filter((outcome) => answer.counts[outcome]).map((outcome) => NOT_STORED[outcome]);
      explain(problem, { detail: "Some entries cannot be stored, and a file goes in whole or not at all.", hint: hint.join(" ") });
    }
    run.hidden = !(answer.dry_run && answer.applied && news);
    run.textContent = `Import ${size(news, "entry", "entries")}`;
    done.hidden = answer.dry_run || !answer.applied;
    report.hidden = false;
    title.focus();
  };

  const go = async (button, dry_run) => {
    explain(problem);
    button.disabled = true;
    try {
      const answer = await ask(dry_run);
      show(answer);
      if (!answer.dry_run && answer.applied) forget();
    } catch (error) {
      if (dry_run) report.hidden = true;
      explain(problem, error);
    } finally {
      button.disabled = false;
    }
  };

  form.addEventListener("input", stale);
  form.addEventListener("submit", (event) => event.preventDefault());
  file.addEventListener("change", opened);
  text.addEventListener("input", () => {
    file.value = "";
    chosen = null;
    said.textContent = asked;
    format.value = formatOf(text.value);
  });
  part("preview").addEventListener("click", (event) => go(event.target, true));
  run.addEventListener("click", (event) => go(event.target, false));
  part("unmask").addEventListener("click", ({ target }) => {
    const masked = text.classList.toggle("masked");
    target.textContent = masked ? "Show" : "Hide";
    target.setAttribute("aria-pressed", String(!masked));
  });
  addEventListener("pagehide", forget);
}

function exporting(form) {
  const part = (name) => document.querySelector(`[data-${name}]`);
  const [password, format, problem, said] = ["password", "format", "problem", "said"].map(part);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    explain(problem);
    said.replaceChildren();
    const body = { format: format.value, password: password.value };
    password.value = "";
    try {
      const answer = await call("/export", body);
      save(answer);
      said.append(made("p", { class: "notice" }, `Saved a file with ${size(answer.count, "secret")}.`));
      if (answer.left_out.length) {
        const items = answer.left_out.map(({ provider, name, reason }) => made("li", {}, `${provider} / ${name}: ${reason}`));
        said.append(made("section", { class: "panel" }, made("h2", {}, "Left out"), made("ul", { class: "plain" }, ...items)));
      }
    } catch (error) {
      const wrong = error.code === "sign_in_failed";
      explain(problem, wrong ? { detail: "That is not your password.", hint: "Nothing was exported. Type it again." } : error);
      password.focus();
    }
  });
}

function save({ content, format }) {
  const address = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
  const day = new Date().toISOString().slice(0, 10);
  const link = made("a", { href: address, download: `keybearer-${day}.${format}` });
  link.click();
  URL.revokeObjectURL(address);
}

document.querySelectorAll("[data-import]").forEach(importing);
document.querySelectorAll("[data-export]").forEach(exporting);
