// Metadata of a person: rows of a key and a value. Values that are no text are shown and read as JSON.

import { fill, h } from "../dom.js";
import { t } from "../i18n.js";

export function metadataEditor(metadata) {
  const rows = Object.entries(metadata).map(([key, value]) => rowOf(key, value));
  const list = h("div", { class: "stack tight" });
  const draw = () => fill(list, rows.map((row) => row.element));
  const add = () => {
    const row = rowOf("", "");
    rows.push(row);
    draw();
    row.key.focus();
  };
  function rowOf(name, value) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const row = {
      before: text,
      value,
      key: h("input", { value: name, "aria-label": t("metadata.key"), dir: "auto", autocomplete: "off" }),
      text: h("input", { value: text, "aria-label": t("metadata.value"), dir: "auto", autocomplete: "off" }),
    };
    row.element = h("div", { class: "pair" }, row.key, row.text,
      h("button", { type: "button", class: "quiet compact", "aria-label": t("metadata.remove", { key: name }), onclick: () => { rows.splice(rows.indexOf(row), 1); draw(); } }, "×"));
    return row;
  }
  draw();
  return {
    element: h("fieldset", { class: "field" }, h("legend", {}, t("metadata.title")), list,
      h("div", { class: "row" }, h("button", { type: "button", class: "compact", onclick: add }, t("metadata.add")))),
    /** Returns what to change: the rows, and null for each key that is gone. */
    changes() {
      const after = {};
      for (const row of rows) {
        const key = row.key.value.trim();
        if (key !== "") after[key] = row.text.value === row.before ? row.value : typed(row);
      }
      for (const key of Object.keys(metadata)) if (!Object.hasOwn(after, key)) after[key] = null;
      return after;
    },
  };
}

/** Returns the value of a changed row: of the kind that it had, if the text is that, else the text. */
function typed({ value, text }) {
  if (typeof value === "string") return text.value;
  try {
    return JSON.parse(text.value);
  } catch {
    return text.value;
  }
}
