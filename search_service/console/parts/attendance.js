// Attendance: first in, last out and hours by day and person, on the page and as CSV.

import { call, path, send } from "../api.js";
import { fill, h } from "../dom.js";
import { number, t, timeOfDay, word, zone } from "../i18n.js";
import { busy, field } from "./forms.js";

const SHOWN = 500;

export function attendanceCard(gallery) {
  const today = localDay(new Date());
  const from = h("input", { type: "date", value: today, "data-testid": "attendance-from" });
  const to = h("input", { type: "date", value: today });
  const result = h("div", { class: "stack" });
  const show = h("button", { type: "submit", class: "primary", "data-testid": "attendance-show" }, t("attendance.show"));
  const save = h("button", { type: "button", "data-testid": "attendance-csv" }, t("attendance.csv"));
  const where = path("events", "attendance");
  const query = () => ({ gallery, first: from.value, until: dayAfter(to.value), timezone: zone() });
  const form = h("form", { class: "card", novalidate: true }, h("h2", {}, t("attendance.title")), h("p", { class: "muted" }, t("attendance.text")),
    h("div", { class: "fields narrow" }, field(t("attendance.from"), from), field(t("attendance.to"), to)),
    h("div", { class: "row" }, show, save), result);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(show, result, async () => {
      const { rows } = await call(where, { query: query() });
      fill(result, rows.length > 0 ? table(rows.slice(0, SHOWN)) : h("p", { class: "muted" }, t("attendance.empty")),
        rows.length > SHOWN ? h("p", { class: "muted" }, t("attendance.cut", { n: rows.length - SHOWN })) : null);
    });
  });
  save.addEventListener("click", () => busy(save, result, async () => {
    const answer = await send(where, { query: { ...query(), csv: true } });
    const url = URL.createObjectURL(await answer.blob());
    h("a", { href: url, download: `attendance-${from.value}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }));
  return form;
}

function table(rows) {
  return h("div", { class: "scroll", tabindex: 0 }, h("table", { "data-testid": "attendance" }, h("thead", {}, h("tr", {},
    h("th", {}, t("attendance.day")), h("th", {}, t("attendance.person")), h("th", {}, t("attendance.first_in")), h("th", {}, t("attendance.last_out")),
    h("th", { class: "number" }, t("attendance.hours")), h("th", {}, t("attendance.remarks")))),
  h("tbody", {}, ...rows.map((row) => h("tr", {}, h("td", {}, row.day), h("td", { dir: "auto" }, row.name || row.external_id),
    h("td", {}, row.first_in ? timeOfDay(row.first_in) : "–"), h("td", {}, row.last_out ? timeOfDay(row.last_out) : "–"),
    h("td", { class: "number" }, row.hours === null ? "–" : number(row.hours, 2)),
    h("td", {}, row.remarks.map((remark) => word("remark", remark)).join(", ")))))));
}

/** Returns the day of a time in the viewer's zone, as date fields have it. */
function localDay(time) {
  return new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 10);
}

function dayAfter(name) {
  if (name === "") return "";
  const time = new Date(`${name}T00:00:00Z`);
  time.setUTCDate(time.getUTCDate() + 1);
  return time.toISOString().slice(0, 10);
}
