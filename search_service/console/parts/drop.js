// Choosing files: by a dialog, by dropping them, and by pasting.

import { h, icon } from "../dom.js";
import { t } from "../i18n.js";

/**
 * Returns an area for files.
 * @param {{id: string, text: string, hint: string, accept: string, multiple?: boolean, onfiles: function}} options
 */
export function dropArea({ id, text, hint, accept, multiple = false, onfiles }) {
  const input = h("input", { type: "file", accept, multiple, "data-testid": id, class: "visually-hidden" });
  input.addEventListener("change", () => {
    if (input.files.length > 0) onfiles([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  const area = h("label", { class: "drop" }, icon("photo"),
    h("span", {}, h("strong", {}, text), h("span", { class: "muted small" }, hint)), input);
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    const files = [...event.dataTransfer.files];
    if (files.length > 0) onfiles(multiple ? files : files.slice(0, 1));
  });
  return area;
}

/** Calls `onfiles` with images that are pasted anywhere on the page. Returns the function that ends it. */
export function onPaste(onfiles) {
  const listener = (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (files.length > 0) {
      event.preventDefault();
      onfiles(files);
    }
  };
  addEventListener("paste", listener);
  return () => removeEventListener("paste", listener);
}

export const PHOTOS = "image/*,.heic,.heif,.avif,.jp2,.tif,.tiff";

export const PASTE_HINT = () => t("drop.hint");
