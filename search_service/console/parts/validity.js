// Whether a person is valid now, in words.

import { h } from "../dom.js";
import { dateTime, t } from "../i18n.js";

export function validityChip(person) {
  const now = Date.now();
  if (person.valid_until !== null && Date.parse(person.valid_until) <= now) {
    return h("span", { class: "chip bad" }, t("validity.expired"));
  }
  if (person.valid_from !== null && Date.parse(person.valid_from) > now) {
    return h("span", { class: "chip warn" }, t("validity.not_yet"));
  }
  if (person.faces === 0) return h("span", { class: "chip warn" }, t("validity.no_photo"));
  return null;
}

export function validityText(person) {
  const { valid_from: from, valid_until: until } = person;
  if (from === null && until === null) return t("validity.always");
  if (from === null) return t("validity.until", { until: dateTime(until) });
  if (until === null) return t("validity.from", { from: dateTime(from) });
  return t("validity.both", { from: dateTime(from), until: dateTime(until) });
}

/** Returns a time as a field of the type `datetime-local` has it, in the viewer's zone. */
export function toField(iso) {
  if (iso === null) return "";
  const time = new Date(iso);
  return new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/** Returns the time of such a field in UTC; null for an empty one. */
export function fromField(value) {
  return value === "" ? null : new Date(value).toISOString();
}
