// Messages: errors in the API's words, and what to do where there is nothing to show.

import { h } from "../dom.js";
import { t } from "../i18n.js";

export function errorText(error) {
  if (error.code === "unreachable") return t("error.unreachable");
  const message = error.message ?? String(error);
  return message.charAt(0).toUpperCase() + message.slice(1);
}

/** Returns a message; `kind` is `good`, `bad` or `info`. Screen readers read it out. */
export function notice(kind, ...children) {
  return h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" }, ...children);
}

export function failure(error) {
  return notice("bad", errorText(error));
}

/** Returns what is shown instead of an empty list. */
export function empty(title, text, ...actions) {
  return h("div", { class: "empty" }, h("h2", {}, title), h("p", {}, text), ...actions);
}

export function spinner(text = t("common.loading")) {
  return h("p", { class: "loading", role: "status" }, text);
}

/** Returns the head of a page. */
export function head(title, text, ...actions) {
  return h("header", { class: "head" }, h("div", {}, h("h1", {}, title), text ? h("p", { class: "muted" }, text) : null),
    actions.length ? h("div", { class: "actions" }, ...actions) : null);
}

/** Returns the page of somebody who has no gallery yet. */
export function noGallery(mayCreate) {
  return empty(t("empty.gallery.title"), t(mayCreate ? "empty.gallery.create" : "empty.gallery.ask"),
    mayCreate ? h("a", { class: "button primary", href: "#gallery" }, t("empty.gallery.go")) : null);
}
