// Webhooks: listing, creating and deleting them, and retrying what could not be delivered.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { number, t, word } from "../i18n.js";
import { everywhere } from "../session.js";
import { confirmDialog, field, openDialog } from "./forms.js";
import { showSecret } from "./keys.js";
import { failure } from "./notice.js";

const DECISIONS = ["match", "review", "no_match"];

export function webhooksCard(gallery) {
  const list = h("div", { class: "scroll", tabindex: 0 });
  const load = async () => {
    try {
      const { webhooks } = await call(path("webhooks"));
      fill(list, webhooks.length > 0 ? table(webhooks, load) : h("p", { class: "muted" }, t("webhooks.empty")));
    } catch (error) {
      fill(list, failure(error));
    }
  };
  load();
  return h("section", { class: "card" }, h("div", { class: "row apart" }, h("h2", {}, t("webhooks.title")),
    h("button", { type: "button", "data-testid": "webhook-create", onclick: () => create(gallery, load) }, t("webhooks.create"))), list);
}

function table(webhooks, reload) {
  const rows = webhooks.map((hook) => h("tr", {}, h("td", {}, hook.url), h("td", { dir: "auto" }, hook.gallery ?? t("keys.all")),
    h("td", {}, hook.decisions.map((one) => word("decision", one)).join(", ")), h("td", { class: "number" }, number(hook.waiting)),
    h("td", { class: "number" }, hook.dead > 0 ? h("span", { class: "chip bad" }, number(hook.dead)) : number(hook.dead)),
    h("td", {}, h("div", { class: "row" },
      hook.dead > 0 ? h("button", { type: "button", class: "compact", onclick: async () => { await call(path("webhooks", hook.id, "replay"), { method: "POST" }); reload(); } }, t("webhooks.retry")) : null,
      h("button", { type: "button", class: "compact", onclick: () => remove(hook, reload) }, t("common.delete"))))));
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, t("webhooks.url")), h("th", {}, t("frame.gallery")), h("th", {}, t("webhooks.decisions")),
    h("th", { class: "number" }, t("webhooks.waiting")), h("th", { class: "number" }, t("webhooks.failed")), h("th", {}, h("span", { class: "visually-hidden" }, t("common.delete"))))), h("tbody", {}, ...rows));
}

function remove(hook, reload) {
  confirmDialog(t("webhooks.delete"), t("webhooks.delete_text", { url: hook.url }), t("common.delete"), async () => {
    await call(path("webhooks", hook.id), { method: "DELETE" });
    await reload();
  });
}

function create(gallery, reload) {
  const url = h("input", { type: "url", autocomplete: "off", placeholder: "https://" });
  const where = h("select", {}, everywhere() ? h("option", { value: "" }, t("keys.all")) : null, gallery ? h("option", { value: gallery }, gallery) : null);
  const boxes = DECISIONS.map((one) => [one, h("input", { type: "checkbox", checked: one === "match" })]);
  openDialog(t("webhooks.create"), [field(t("webhooks.url"), url), field(t("frame.gallery"), where),
    h("fieldset", {}, h("legend", {}, t("webhooks.decisions")), ...boxes.map(([one, box]) => h("label", { class: "check" }, box, word("decision", one))))], {
    text: t("webhooks.create"),
    work: async () => {
      const decisions = boxes.filter(([, box]) => box.checked).map(([one]) => one);
      const made = await call(path("webhooks"), { method: "POST", json: { url: url.value.trim(), gallery: where.value || null, decisions } });
      await reload();
      showSecret(t("webhooks.created"), t("webhooks.secret_text"), made.secret);
    },
  });
}
