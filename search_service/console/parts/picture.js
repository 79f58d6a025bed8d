// A photo or a video with its faces drawn on it. Faces are buttons, so that they can be chosen by keyboard.

import { fill, h } from "../dom.js";

/**
 * Shows boxes over a picture.
 * @param {HTMLElement} media An image or a video, shown as wide as the result.
 */
export function framed(media) {
  const boxes = h("div", { class: "boxes" });
  const element = h("div", { class: "framed" }, media, boxes);
  return {
    element,
    /**
     * Draws one box for each face.
     * @param {{width: number, height: number}} size Of the picture that the boxes' pixels are of.
     * @param {{box: number[], label: string, kind: string, chosen?: boolean, onchoose?: function}[]} faces
     */
    draw(size, faces) {
      fill(boxes, faces.map((face) => boxOf(face, size)));
    },
  };
}

function boxOf({ box, label, kind, chosen, onchoose }, { width, height }) {
  const text = h("span", { class: "label", dir: "auto" }, label);
  const element = onchoose
    ? h("button", { type: "button", class: `face ${kind}`, "aria-pressed": String(Boolean(chosen)), onclick: onchoose }, text)
    : h("div", { class: `face ${kind}` }, text);
  const [left, top, w, h_] = box;
  element.style.left = `${(100 * left) / width}%`;
  element.style.top = `${(100 * top) / height}%`;
  element.style.width = `${(100 * w) / width}%`;
  element.style.height = `${(100 * h_) / height}%`;
  return element;
}

/**
 * Returns an image of a file, when it is loaded, and its size; null where the browser cannot show this kind of file.
 * The address of the image is released with `release`.
 */
export async function imageOf(file) {
  const url = URL.createObjectURL(file);
  const image = h("img", { alt: "" });
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return null;
  }
  return { image, width: image.naturalWidth, height: image.naturalHeight, release: () => URL.revokeObjectURL(url) };
}
