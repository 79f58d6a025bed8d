// One person: properties, photos, merging and deleting.

import { call, path, send } from "../api.js";
import { fill, h } from "../dom.js";
import { dateTime, number, t, word } from "../i18n.js";
import { score } from "../parts/answer.js";
import { enrollCard } from "../parts/enroll.js";
import { busy, confirmDialog, debounced, field, openDialog } from "../parts/forms.js";
import { errorText, failure, head, notice, spinner } from "../parts/notice.js";
import { metadataEditor } from "../parts/metadata.js";
import { fromField, toField, validityChip, validityText } from "../parts/validity.js";
import { gallery } from "../session.js";

const MOST_PHOTOS = 1000;

export function showPerson(place, externalId) {
  const page = new PersonPage(place, gallery(), externalId);
  page.load();
  return () => page.close();
}

class PersonPage {
  constructor(place, galleryName, externalId) {
    Object.assign(this, { place, gallery: galleryName, id: externalId, images: [], cards: null });
    fill(place, spinner());
  }

  get where() {
    return path("galleries", this.gallery, "identities", this.id);
  }

  close() {
    this.closed = true;
    this.cards?.close();
    for (const url of this.images) URL.revokeObjectURL(url);
    this.images = [];
  }

  async load() {
    try {
      const answer = await send(this.where);
      this.tag = answer.headers.get("ETag");
      this.person = await answer.json();
      this.faces = (await call(`${this.where}/faces`, { query: { limit: MOST_PHOTOS } })).faces;
    } catch (error) {
      if (!this.closed) fill(this.place, this.back(), failure(error));
      return;
    }
    if (!this.closed) this.draw();
  }

  back() {
    return h("p", {}, h("a", { href: "#people" }, t("person.back")));
  }

  draw() {
    const { person } = this;
    this.close();
    this.closed = false;
    this.cards = enrollCard(this.gallery, () => this.load(), this.id);
    const title = head(person.name || person.external_id, null,
      h("button", { type: "button", onclick: () => this.merge() }, t("merge.button")),
      h("button", { type: "button", class: "danger", "data-testid": "person-delete", onclick: () => this.remove() }, t("person.delete")));
    title.querySelector("h1").dir = "auto";
    fill(this.place, this.back(), title,
      h("div", { class: "columns list" },
        h("div", { class: "stack" }, this.photos(), this.properties()),
        h("div", { class: "stack" }, this.summary(), this.cards.element)));
  }

  summary() {
    const { person } = this;
    return h("section", { class: "card" }, h("dl", { class: "facts" },
      h("dt", {}, t("person.id")), h("dd", { dir: "auto" }, person.external_id),
      h("dt", {}, t("person.valid")), h("dd", {}, validityText(person), " ", validityChip(person)),
      h("dt", {}, t("person.created")), h("dd", {}, dateTime(person.created_at)),
      h("dt", {}, t("person.updated")), h("dd", {}, dateTime(person.updated_at))));
  }

  photos() {
    const items = this.faces.map((face) => this.photo(face));
    return h("section", { class: "card" }, h("h2", {}, t("person.photos", { n: this.faces.length })),
      items.length > 0 ? h("ul", { class: "photos" }, ...items) : h("p", { class: "muted" }, t("person.no_photos")));
  }

  photo(face) {
    const picture = h("div", { class: "crop" }, h("span", { class: "muted small" }, t("person.no_crop")));
    if (face.has_crop) this.showCrop(picture, face);
    const { quality } = face;
    const remove = h("button", { type: "button", class: "quiet compact", onclick: () => this.removePhoto(face) }, t("person.remove_photo"));
    return h("li", { "data-testid": "photo", "data-face-id": face.face_id }, picture,
      h("div", { class: "stack tight small" },
        h("span", {}, dateTime(face.created_at)),
        h("span", { class: "muted" }, t("person.size", { size: Math.round(quality.size) })),
        quality.reasons.length > 0 ? quality.reasons.map((reason) => h("span", { class: "chip warn" }, word("quality", reason)))
          : h("span", { class: "chip good" }, t("person.good_quality")),
        h("details", { class: "muted" }, h("summary", {}, t("person.measures")),
          t("person.measure_list", { sharpness: number(quality.sharpness, 1), yaw: number(quality.yaw, 2), brightness: number(quality.brightness), contrast: number(quality.contrast), detection: score(face.detection_score) })),
        remove));
  }

  async showCrop(picture, face) {
    try {
      const answer = await send(path("galleries", this.gallery, "faces", String(face.face_id), "crop"));
      const url = URL.createObjectURL(await answer.blob());
      this.images.push(url);
      fill(picture, h("img", { src: url, alt: t("person.photo_alt", { date: dateTime(face.created_at) }) }));
    } catch (error) {
      fill(picture, h("span", { class: "muted small" }, errorText(error)));
    }
  }

  properties() {
    const { person } = this;
    const name = h("input", { "data-testid": "person-name", maxlength: 200, value: person.name ?? "", dir: "auto", autocomplete: "off" });
    const from = h("input", { type: "datetime-local", value: toField(person.valid_from) });
    const until = h("input", { type: "datetime-local", value: toField(person.valid_until) });
    const metadata = metadataEditor(person.metadata);
    const problem = h("div");
    const save = h("button", { type: "submit", class: "primary", "data-testid": "person-save" }, t("common.save"));
    const form = h("form", { class: "card", novalidate: true }, h("h2", {}, t("person.properties")),
      field(t("enroll.name"), name),
      h("div", { class: "fields" }, field(t("person.valid_from"), from), field(t("person.valid_until"), until)),
      metadata.element, problem, h("div", { class: "row" }, save));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      busy(save, problem, async () => {
        const changes = { name: name.value.trim() || null, metadata: metadata.changes() };
        // Fields have minutes; a time that was not changed keeps its seconds.
        if (from.value !== toField(person.valid_from)) changes.valid_from = fromField(from.value);
        if (until.value !== toField(person.valid_until)) changes.valid_until = fromField(until.value);
        await call(this.where, { method: "PATCH", json: changes, headers: this.tag ? { "If-Match": this.tag } : {} });
        await this.load();
        this.place.prepend(notice("good", t("person.saved")));
      });
    });
    return form;
  }

  removePhoto(face) {
    confirmDialog(t("person.remove_photo"), t("person.remove_photo_text"), t("common.delete"), async () => {
      await call(path("galleries", this.gallery, "faces", String(face.face_id)), { method: "DELETE" });
      await this.load();
    });
  }

  remove() {
    const text = t("person.delete_text", { name: this.person.name || this.id, n: this.faces.length });
    confirmDialog(t("person.delete"), text, t("common.delete"), async () => {
      await call(this.where, { method: "DELETE" });
      location.hash = "#people";
    });
  }

  /** Merges another person into this one, after both were shown. */
  merge() {
    const other = h("input", { "data-testid": "merge-id", autocomplete: "off", spellcheck: "false", maxlength: 200 });
    const preview = h("div", { class: "stack tight", "aria-live": "polite" });
    let found = null;
    const look = async () => {
      const id = other.value.trim();
      found = null;
      if (id === "") {
        fill(preview);
        return;
      }
      try {
        const { identities } = await call(path("galleries", this.gallery, "identities"), { query: { q: id, limit: 50 } });
        if (other.value.trim() !== id) return;
        const person = identities.find((one) => one.external_id === id);
        if (person === undefined) {
          fill(preview, suggestions(identities.filter((one) => one.external_id !== this.id)));
          return;
        }
        if (person.external_id === this.person.external_id) throw new Error(t("merge.same"));
        found = person;
        fill(preview, this.mergePreview(person));
      } catch (error) {
        if (other.value.trim() === id) fill(preview, failure(error));
      }
    };
    const suggestions = (people) => (people.length === 0 ? h("p", { class: "muted" }, t("people.not_found.title"))
      : h("div", { class: "segments" }, ...people.slice(0, 5).map((one) => h("button", {
        type: "button", dir: "auto", onclick: () => { other.value = one.external_id; look(); },
      }, one.name ? `${one.name} (${one.external_id})` : one.external_id))));
    other.addEventListener("input", debounced(look, 300));
    openDialog(t("merge.title", { name: this.person.name || this.id }), [h("p", { class: "muted" }, t("merge.intro")), field(t("merge.other_id"), other), preview], {
      text: t("merge.confirm"),
      kind: "danger",
      work: async () => {
        if (found === null) await look();
        if (found === null) throw new Error(t("merge.none"));
        await call(`${this.where}/merge`, { method: "POST", json: { other: found.external_id } });
        await this.load();
        this.place.prepend(notice("good", t("merge.done")));
      },
    });
  }

  mergePreview(other) {
    const { person } = this;
    const metadata = { ...other.metadata, ...person.metadata };
    const row = (label, mine, theirs, after) => h("tr", {}, h("th", { scope: "row" }, label), ...[mine, theirs, after].map((text) => h("td", { dir: "auto" }, text)));
    const keys = (data) => Object.keys(data).join(", ") || "–";
    return h("div", { class: "scroll" }, h("table", { "data-testid": "merge-preview" },
      h("thead", {}, h("tr", {}, h("td"), h("th", {}, t("merge.kept")), h("th", {}, t("merge.deleted")), h("th", {}, t("merge.after")))),
      h("tbody", {},
        row(t("person.id"), person.external_id, other.external_id, person.external_id),
        row(t("enroll.name"), person.name ?? "–", other.name ?? "–", person.name ?? other.name ?? "–"),
        row(t("merge.photos"), number(this.faces.length), number(other.faces), number(this.faces.length + other.faces)),
        row(t("person.valid"), validityText(person), validityText(other), validityText(person)),
        row(t("metadata.title"), keys(person.metadata), keys(other.metadata), keys(metadata)))));
  }
}
