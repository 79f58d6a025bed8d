// Forms: fields with labels, dialogs, and buttons that show what they wait for.

import { h } from "../dom.js";
import { t } from "../i18n.js";
import { failure } from "./notice.js";

let count = 0;

/** Returns a labelled field; `control` is an input, a select or a text area. */
export function field(label, control, hint) {
  control.id ||= `field-${++count}`;
  const help = hint ? h("p", { class: "muted small", id: `${control.id}-help` }, hint) : null;
  if (help) control.setAttribute("aria-describedby", help.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, help);
}

/** Runs `work` while the button is disabled. Errors are shown in `place`, in the API's words. */
export async function busy(button, place, work) {
  button.disabled = true;
  place.replaceChildren();
  try {
    await work();
  } catch (error) {
    place.append(failure(error));
  } finally {
    button.disabled = false;
  }
}

/**
 * Opens a dialog and returns it. It is removed when it is closed.
 * @param {string} title
 * @param {Node[]} content
 * @param {{text: string, kind: string, work: function}} action What its main button does; the dialog closes afterwards.
 */
export function openDialog(title, content, action) {
  const problem = h("div");
  const heading = h("h2", { id: `dialog-${++count}` }, title);
  const dialog = h("dialog", { "aria-labelledby": heading.id });
  const button = h("button", { type: "submit", class: action?.kind ?? "primary", "data-testid": "dialog-confirm" }, action?.text ?? t("common.close"));
  const form = h("form", { novalidate: true }, heading, ...content, problem, h("div", { class: "actions" },
    action ? h("button", { type: "button", onclick: () => dialog.close() }, t("common.cancel")) : null, button));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(button, problem, async () => {
      if (action) await action.work();
      dialog.close();
    });
  });
  dialog.append(form);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Asks before something is done that cannot be undone. */
export function confirmDialog(title, text, button, work) {
  return openDialog(title, [h("p", {}, text)], { text: button, kind: "danger", work });
}

/** Returns a function that calls `work` when it was not called for that many milliseconds. */
export function debounced(work, milliseconds) {
  let timer = null;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), milliseconds);
  };
}
