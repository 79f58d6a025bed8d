// Search: who is on this photo?

import { call, latestOnly, path } from "../api.js";
import { fill, h } from "../dom.js";
import { t, word } from "../i18n.js";
import { KINDS, RATES, USUAL_RATE, candidatesOf, decisionOf, displayName, rateSlider, score } from "../parts/answer.js";
import { PASTE_HINT, PHOTOS, dropArea, onPaste } from "../parts/drop.js";
import { failure, head, noGallery, notice, spinner } from "../parts/notice.js";
import { framed, imageOf } from "../parts/picture.js";
import { can, everywhere, gallery } from "../session.js";

const TOP_K = 5;

export function show(place) {
  fill(place, head(t("page.search"), t("search.intro")));
  if (gallery() === null) {
    place.append(noGallery(can("admin") && everywhere()));
    return null;
  }
  const page = new SearchPage();
  place.append(page.element);
  const ended = onPaste((files) => page.use(files[0]));
  return () => {
    ended();
    page.close();
  };
}

class SearchPage {
  constructor() {
    this.file = null;
    this.shown = null;
    this.faces = [];
    this.chosen = 0;
    this.rate = USUAL_RATE;
    this.gallery = gallery();
    this.photo = h("div", { class: "photo" });
    this.answer = h("div", { class: "answer" });
    this.search = latestOnly(() => this.ask());
    const drop = dropArea({
      id: "probe-file", text: t("search.choose"), hint: PASTE_HINT(), accept: PHOTOS, onfiles: ([file]) => this.use(file),
    });
    const rate = rateSlider(this.rate, (index) => {
      this.rate = index;
      if (this.file !== null) this.search();
    });
    this.element = h("div", { class: "columns" },
      h("section", { class: "card", "aria-label": t("search.photo") }, drop, this.photo),
      h("section", { class: "card", "aria-label": t("search.result") }, rate, this.answer));
    fill(this.answer, h("p", { class: "muted hint" }, t("search.empty")));
  }

  close() {
    this.shown?.release();
    this.shown = null;
    this.file = null;
  }

  async use(file) {
    this.close();
    this.file = file;
    this.isNew = true;
    this.faces = [];
    this.chosen = 0;
    fill(this.photo);
    fill(this.answer, spinner(t("search.searching")));
    const shown = await imageOf(file);
    if (this.file !== file) {
      shown?.release();
      return;
    }
    this.shown = shown;
    if (shown === null) {
      this.frame = null;
      fill(this.photo, notice("info", t("search.not_shown", { file: file.name })));
    } else {
      shown.image.alt = t("search.photo_of", { file: file.name });
      this.frame = framed(shown.image);
      fill(this.photo, this.frame.element);
    }
    this.search();
  }

  /** Searches the photo at the chosen rate. */
  async ask() {
    const file = this.file;
    if (file === null) return;
    const form = new FormData();
    form.append("image", file, file.name || "photo");
    form.append("all_faces", "true");
    form.append("top_k", TOP_K);
    form.append("fpir", RATES[this.rate]);
    this.answer.setAttribute("aria-busy", "true");
    try {
      const answer = await call(path("galleries", this.gallery, "search"), { method: "POST", form });
      if (this.file !== file) return;
      this.faces = answer.faces;
      this.draw();
      if (this.isNew) this.answer.scrollIntoView({ block: "nearest" }); // it is below the photo on small screens
      this.isNew = false;
    } catch (error) {
      if (this.file !== file) return;
      this.faces = [];
      this.frame?.draw({ width: 1, height: 1 }, []);
      fill(this.answer, failure(error));
    } finally {
      this.answer.removeAttribute("aria-busy");
    }
  }

  choose(index) {
    this.chosen = index;
    this.draw();
  }

  draw() {
    const face = this.faces[this.chosen] ?? this.faces[0];
    const boxes = this.faces.map((one, index) => ({
      box: one.box,
      label: one.decision === "no_match" || one.candidates.length === 0 ? word("decision", one.decision) : displayName(one.candidates[0]),
      kind: KINDS[one.decision] ?? "calm",
      chosen: one === face,
      onchoose: () => this.choose(index),
    }));
    if (this.frame) this.frame.draw(this.shown, boxes);
    const several = this.faces.length > 1
      ? h("p", { class: "muted small" }, t("search.several", { n: this.faces.length }))
      : null;
    const list = this.faces.length > 1 ? this.faceList(face) : null;
    fill(this.answer, several, list, decisionOf(face),
      h("p", { class: "muted small" }, t("search.threshold", { threshold: score(face.threshold) })), candidatesOf(face));
  }

  /** Returns buttons for the faces, for pictures that the browser cannot show and for small screens. */
  faceList(face) {
    return h("div", { class: "segments", role: "group", "aria-label": t("search.faces") }, ...this.faces.map((one, index) =>
      h("button", { type: "button", "aria-pressed": String(one === face), onclick: () => this.choose(index) }, `${index + 1}`)));
  }
}
