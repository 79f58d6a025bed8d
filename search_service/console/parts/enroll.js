// Adding photos of a person: files, and pictures of the camera with guidance.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { t, word } from "../i18n.js";
import { PASTE_HINT, PHOTOS, dropArea, onPaste } from "./drop.js";
import { busy, field } from "./forms.js";
import { Guide } from "./guide.js";
import { errorText, notice } from "./notice.js";

/** Photos in one request, as the service takes. */
const MOST_PHOTOS = 10;

/**
 * Returns the form that adds a person, or with `externalId` photos of one. `ondone` is called when photos were added.
 */
export function enrollCard(gallery, ondone, externalId = null) {
  const chosen = [];
  const id = h("input", { "data-testid": "enroll-id", maxlength: 200, autocomplete: "off", spellcheck: "false", required: true });
  const name = h("input", { "data-testid": "enroll-name", maxlength: 200, autocomplete: "off" });
  const list = h("ul", { class: "chosen" });
  const result = h("div", { class: "stack tight", "data-testid": "enroll-result", role: "status" });
  const submit = h("button", { type: "submit", class: "primary", "data-testid": "enroll-submit" }, t("enroll.submit"));
  const problem = h("div");

  const draw = () => fill(list, chosen.map((file, index) => h("li", {},
    h("span", { class: "name", dir: "auto" }, file.name),
    h("button", { type: "button", class: "quiet compact", "aria-label": t("enroll.remove", { file: file.name }), onclick: () => { chosen.splice(index, 1); draw(); } }, "×"))));
  const add = (files) => {
    chosen.push(...files);
    fill(result);
    draw();
  };
  const guide = new Guide((file) => add([file]));
  const drop = dropArea({ id: "enroll-file", text: t("enroll.choose"), hint: PASTE_HINT(), accept: PHOTOS, multiple: true, onfiles: add });

  const send = async () => {
    const who = externalId ?? id.value.trim();
    if (who === "") throw new Error(t("enroll.id_missing"));
    if (chosen.length === 0) throw new Error(t("enroll.photo_missing"));
    const place = path("galleries", gallery, "identities", who);
    const results = [];
    for (let at = 0; at < chosen.length; at += MOST_PHOTOS) {
      const form = new FormData();
      for (const file of chosen.slice(at, at + MOST_PHOTOS)) form.append("images", file, file.name || "photo");
      results.push(...(await call(`${place}/faces`, { method: "POST", form })).results);
    }
    const added = results.some((one) => one.outcome !== "rejected");
    if (added && name.value.trim() !== "") await call(place, { method: "PATCH", json: { name: name.value.trim() } });
    fill(result, results.map(outcome), added ? openLink(who) : null);
    chosen.splice(0);
    draw();
    if (added) {
      id.value = "";
      name.value = "";
      guide.stop();
      ondone();
    }
  };
  const openLink = (who) => (externalId === null
    ? h("a", { href: `#people/${encodeURIComponent(who)}` }, t("enroll.open")) : null);

  const form = h("form", { class: "card", novalidate: true },
    h("h2", {}, t(externalId === null ? "enroll.title" : "enroll.more")),
    externalId === null ? field(t("enroll.id"), id, t("enroll.id_help")) : null,
    externalId === null ? field(t("enroll.name"), name) : null,
    drop, guide.element, list, problem, submit, result);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(submit, problem, send);
  });
  const ended = onPaste(add);
  return {
    element: form,
    close: () => {
      ended();
      guide.stop();
    },
  };
}

function outcome(result) {
  const texts = {
    enrolled: () => t("enroll.enrolled", { file: result.image }),
    unchanged: () => t("enroll.unchanged", { file: result.image }),
    rejected: () => `${t("enroll.rejected", { file: result.image })} ${word("reject", result.reason)}`,
  };
  const kind = { enrolled: "good", unchanged: "info" }[result.outcome] ?? "bad";
  const element = notice(kind, h("p", {}, (texts[result.outcome] ?? (() => result.outcome))()),
    result.message ? h("p", { class: "small" }, errorText(result)) : null);
  Object.assign(element.dataset, { outcome: result.outcome, reason: result.reason ?? "" });
  return element;
}
