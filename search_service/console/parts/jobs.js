// Enrollments of many photos: uploading a ZIP, following its progress, and reading the report.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { dateTime, number, percent, t, word } from "../i18n.js";
import { dropArea } from "./drop.js";
import { confirmDialog, openDialog } from "./forms.js";
import { failure, notice } from "./notice.js";

const SHOWN = 10;
const POLL = 1000;
const ENDED = ["done", "failed", "cancelled"];
const KINDS = { done: "good", failed: "bad", cancelled: "warn" };

/** Returns the card; `onchange` is called while a job enrolls people. */
export function jobsCard(gallery, onchange) {
  const list = h("div", { class: "stack", "aria-live": "polite" });
  const problem = h("div");
  let timer = null;
  let closed = false;
  let wasActive = false;

  const load = async () => {
    clearTimeout(timer);
    try {
      const { jobs } = await call(path("jobs"), { query: { gallery, limit: SHOWN } });
      if (closed) return;
      fill(list, jobs.length > 0 ? jobs.map((job) => jobRow(job, load)) : h("p", { class: "muted" }, t("jobs.empty")));
      const active = jobs.some((job) => !ENDED.includes(job.state));
      if (active || wasActive) onchange();
      wasActive = active;
      if (active) timer = setTimeout(load, POLL);
    } catch (error) {
      if (!closed) fill(list, failure(error));
    }
  };
  const upload = async ([file]) => {
    fill(problem, notice("info", t("jobs.uploading", { file: file.name })));
    try {
      await call(path("galleries", gallery, "enrollments"), { method: "POST", body: file, headers: { "Content-Type": "application/zip" } });
      fill(problem);
    } catch (error) {
      fill(problem, failure(error));
    }
    await load();
    onchange();
  };
  const drop = dropArea({ id: "job-file", text: t("jobs.choose"), hint: t("jobs.hint"), accept: ".zip,application/zip", onfiles: upload });
  load();
  return {
    element: h("section", { class: "card" }, h("h2", {}, t("jobs.title")), drop, problem, list),
    close: () => {
      closed = true;
      clearTimeout(timer);
    },
  };
}

function jobRow(job, reload) {
  const ended = ENDED.includes(job.state);
  const bar = h("div", { class: "fill" });
  const share = job.images > 0 ? job.done / job.images : 1;
  bar.style.width = `${100 * share}%`;
  const counts = ["enrolled", "unchanged", "rejected"].filter((kind) => job[kind] > 0).map((kind) => `${number(job[kind])} ${word("outcome", kind)}`);
  return h("div", { class: "job", "data-testid": "job", "data-state": job.state },
    h("div", { class: "row apart" },
      h("div", { class: "row" }, h("span", { class: `chip ${KINDS[job.state] ?? "info"}` }, word("job", job.state)),
        h("span", {}, dateTime(job.created_at)), h("span", { class: "muted" }, t("jobs.images", { n: job.images }))),
      h("div", { class: "row" },
        h("button", { type: "button", class: "compact", "data-testid": "job-report", onclick: () => report(job) }, t("jobs.report")),
        ended ? null : h("button", { type: "button", class: "compact", onclick: () => cancel(job, reload) }, t("jobs.cancel")))),
    ended ? null : h("div", { class: "progress", role: "progressbar", "aria-valuenow": Math.round(100 * share), "aria-label": t("jobs.progress", { share: percent(share, 0) }) }, bar),
    h("p", { class: "muted small" }, counts.join(" · ") || t("jobs.nothing_yet")),
    job.problem ? notice("bad", job.problem) : null);
}

function cancel(job, reload) {
  confirmDialog(t("jobs.cancel"), t("jobs.cancel_text"), t("jobs.cancel"), async () => {
    await call(path("jobs", job.id, "cancel"), { method: "POST" });
    await reload();
  });
}

/** Shows the outcome of each image, those that were rejected first. */
function report(job) {
  const rows = h("tbody");
  const more = h("button", { type: "button", hidden: true }, t("common.more"));
  const problem = h("div");
  const choice = h("select", { "aria-label": t("jobs.outcome") }, ...["rejected", "enrolled", "unchanged"].map((kind) =>
    h("option", { value: kind }, word("outcome", kind))));
  let cursor = null;
  const load = async () => {
    try {
      const page = await call(path("jobs", job.id), { query: { outcome: choice.value, limit: 100, cursor } });
      rows.append(...page.results.map((one) => h("tr", {}, h("td", { dir: "auto" }, one.image), h("td", { dir: "auto" }, one.external_id),
        h("td", {}, one.reason ? word("reject", one.reason) : word("outcome", one.outcome), one.message ? h("p", { class: "muted small" }, one.message) : null))));
      if (rows.childElementCount === 0) rows.append(h("tr", {}, h("td", { colspan: 3, class: "muted" }, t("common.none"))));
      cursor = page.cursor;
      more.hidden = cursor === null;
    } catch (error) {
      fill(problem, failure(error));
    }
  };
  more.addEventListener("click", load);
  choice.addEventListener("change", () => {
    fill(rows);
    cursor = null;
    load();
  });
  if (job.rejected === 0) choice.value = "enrolled";
  openDialog(t("jobs.report"), [choice, h("div", { class: "scroll", tabindex: 0 }, h("table", { "data-testid": "job-results" }, h("thead", {}, h("tr", {},
    h("th", {}, t("jobs.image")), h("th", {}, t("person.id")), h("th", {}, t("jobs.result")))), rows)), more, problem]);
  load();
}
