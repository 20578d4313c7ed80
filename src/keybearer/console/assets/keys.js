// How far a rotation is, told while it goes on; when it has ended the page is loaded anew.

import { call, explain } from "./api.js";

const EVERY_MS = 1000;
const section = document.querySelector("[data-rotation]");
const [bar, step, problem] = ["bar", "step", "problem"].map((name) => section.querySelector(`[data-${name}]`));
const doing = step.textContent.split(":")[0];
let named = null;

async function look() {
  try {
    const { rotation } = await call("/admin/keys", undefined, { method: "GET" });
    if (!rotation || rotation.state !== "running") return location.replace("/admin/keys");
    named ??= rotation.step;
    bar.max = Math.max(rotation.total, 1);
    bar.value = rotation.done;
    const said = rotation.step === named ? doing : rotation.step;
    step.textContent = `${said}: ${rotation.done.toLocaleString()} of ${rotation.total.toLocaleString()}.`;
    explain(problem, rotation.problem && { detail: rotation.problem });
  } catch (error) {
    explain(problem, error);
  }
  setTimeout(look, EVERY_MS);
}

setTimeout(look, EVERY_MS);
