// API keys: listing, creating and revoking them.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { dateTime, t, word } from "../i18n.js";
import { can, galleries } from "../session.js";
import { confirmDialog, field, openDialog } from "./forms.js";
import { failure } from "./notice.js";

const SCOPES = ["search", "investigate", "enroll", "admin"];

export function keysCard() {
  const list = h("div", { class: "scroll", tabindex: 0 });
  const load = async () => {
    try {
      const found = [];
      let cursor = null;
      do {
        const page = await call(path("keys"), { query: { limit: 1000, cursor } });
        found.push(...page.keys);
        cursor = page.cursor;
      } while (cursor !== null);
      fill(list, found.length > 0 ? table(found, load) : h("p", { class: "muted" }, t("keys.empty")));
    } catch (error) {
      fill(list, failure(error));
    }
  };
  load();
  return h("section", { class: "card" }, h("div", { class: "row apart" }, h("h2", {}, t("keys.title")),
    h("button", { type: "button", "data-testid": "key-create", onclick: () => create(load) }, t("keys.create"))), list);
}

function table(keys, reload) {
  const rows = keys.map((key) => h("tr", { "data-testid": "key" }, h("td", { dir: "auto" }, key.name),
    h("td", {}, key.scopes.map((scope) => word("scope", scope)).join(", ")),
    h("td", { dir: "auto" }, key.galleries === null ? t("keys.all") : key.galleries.join(", ")),
    h("td", {}, stateOf(key)),
    h("td", { class: "number" }, key.revoked_at === null
      ? h("button", { type: "button", class: "compact", "aria-label": t("keys.revoke_one", { name: key.name }), onclick: () => revoke(key, reload) }, t("keys.revoke")) : null)));
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, t("keys.name")), h("th", {}, t("keys.scope")), h("th", {}, t("keys.galleries")),
    h("th", {}, t("keys.state")), h("th", {}, h("span", { class: "visually-hidden" }, t("keys.revoke"))))), h("tbody", {}, ...rows));
}

function stateOf(key) {
  if (key.revoked_at !== null) return h("span", { class: "chip" }, t("keys.revoked"));
  if (key.expires_at === null) return h("span", { class: "chip good" }, t("keys.valid"));
  return Date.parse(key.expires_at) <= Date.now() ? h("span", { class: "chip warn" }, t("keys.expired"))
    : h("span", { class: "chip good" }, t("keys.until", { until: dateTime(key.expires_at) }));
}

function revoke(key, reload) {
  confirmDialog(t("keys.revoke"), t("keys.revoke_text", { name: key.name }), t("keys.revoke"), async () => {
    await call(path("keys", key.id), { method: "DELETE" });
    await reload();
  });
}

function create(reload) {
  const name = h("input", { "data-testid": "key-name", maxlength: 200, autocomplete: "off" });
  const scope = h("select", { "data-testid": "key-scope" }, ...SCOPES.filter(can).map((one) => h("option", { value: one }, word("scope", one))));
  const limit = h("select", {}, h("option", { value: "" }, t("keys.all")), ...galleries().map((one) => h("option", { value: one.name }, one.name)));
  const until = h("input", { type: "datetime-local" });
  openDialog(t("keys.create"), [field(t("keys.name"), name, t("keys.name_help")), field(t("keys.scope"), scope), field(t("keys.galleries"), limit), field(t("keys.expires"), until)], {
    text: t("keys.create"),
    work: async () => {
      const made = await call(path("keys"), {
        method: "POST",
        json: {
          name: name.value.trim(), scopes: [scope.value], galleries: limit.value === "" ? null : [limit.value],
          expires_at: until.value === "" ? null : new Date(until.value).toISOString(),
        },
      });
      await reload();
      showSecret(t("keys.created", { name: made.name }), t("keys.secret_text"), made.key);
    },
  });
}

/** Shows a secret once, to be copied. */
export function showSecret(title, text, secret) {
  openDialog(title, [h("p", {}, text), h("pre", { class: "secret", "data-testid": "secret", tabindex: 0 }, secret)]);
}
