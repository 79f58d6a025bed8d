// People: the list with its search, and adding a person. One person's own page is in `person.js`.

import { call, latestOnly, path } from "../api.js";
import { fill, h } from "../dom.js";
import { dateTime, t } from "../i18n.js";
import { enrollCard } from "../parts/enroll.js";
import { debounced } from "../parts/forms.js";
import { empty, failure, head, noGallery } from "../parts/notice.js";
import { validityChip } from "../parts/validity.js";
import { can, everywhere, gallery } from "../session.js";
import { showPerson } from "./person.js";

const PAGE = 50;
const TYPING_PAUSE = 150;
const LONGEST_QUERY = 200;

export function show(place, context) {
  if (gallery() === null) {
    fill(place, head(t("page.people")), noGallery(can("admin") && everywhere()));
    return null;
  }
  if (context.rest !== "") return showPerson(place, context.rest);
  const page = new PeoplePage();
  fill(place, head(t("page.people"), t("people.intro")), page.element);
  page.load();
  return () => page.close();
}

class PeoplePage {
  constructor() {
    this.gallery = gallery();
    this.cursors = [null];
    this.input = h("input", {
      type: "search", id: "person-search", "data-testid": "person-search", placeholder: t("people.search"), maxlength: LONGEST_QUERY,
      autocomplete: "off", spellcheck: "false",
    });
    this.load = latestOnly(() => this.ask());
    const typed = debounced(() => {
      this.cursors = [null];
      this.load();
    }, TYPING_PAUSE);
    this.input.addEventListener("input", typed);
    this.results = h("div", { "aria-live": "polite" });
    this.previous = h("button", { type: "button", class: "compact", onclick: () => this.turn(-1) }, t("people.previous"));
    this.next = h("button", { type: "button", class: "compact", onclick: () => this.turn(1) }, t("people.next"));
    this.place = h("span", { class: "muted small" });
    this.pages = h("div", { class: "row apart", hidden: true }, this.previous, this.place, this.next);
    this.enroll = enrollCard(this.gallery, () => this.load());
    this.element = h("div", { class: "columns list" },
      h("div", { class: "stack" }, h("label", { class: "visually-hidden", for: "person-search" }, t("people.search")), this.input, this.results, this.pages),
      this.enroll.element);
  }

  close() {
    this.enroll.close();
  }

  turn(step) {
    if (step > 0) this.cursors.push(this.cursor);
    else this.cursors.pop();
    this.load();
  }

  async ask() {
    const query = this.input.value.trim();
    this.results.setAttribute("aria-busy", "true");
    try {
      const page = await call(path("galleries", this.gallery, "identities"), {
        query: { limit: PAGE, cursor: this.cursors.at(-1), q: query },
      });
      this.cursor = page.cursor;
      this.draw(page.identities, query);
    } catch (error) {
      fill(this.results, failure(error));
    } finally {
      this.results.removeAttribute("aria-busy");
    }
  }

  draw(people, query) {
    if (people.length === 0) {
      fill(this.results, query === ""
        ? empty(t("people.empty.title"), t("people.empty.text"))
        : empty(t("people.not_found.title"), t("people.not_found.text")));
    } else {
      fill(this.results, h("div", { class: "card flush" }, h("ul", { class: "people" }, ...people.map(personRow))));
    }
    const number = this.cursors.length;
    this.pages.hidden = number === 1 && this.cursor === null;
    this.previous.disabled = number === 1;
    this.next.disabled = this.cursor === null;
    this.place.textContent = t("people.page", { page: number });
  }
}

function personRow(person) {
  return h("li", { "data-testid": "person", "data-external-id": person.external_id },
    h("a", { href: `#people/${encodeURIComponent(person.external_id)}` },
      h("span", { class: "initial", "aria-hidden": "true" }, initial(person)),
      h("span", { class: "who" }, h("span", { class: "name", dir: "auto" }, person.name || person.external_id),
        person.name ? h("span", { class: "id", dir: "auto" }, person.external_id) : null),
      h("span", { class: "facts-line" }, validityChip(person), h("span", { class: "muted small" }, t("people.photos", { n: person.faces })),
        h("span", { class: "muted small date" }, dateTime(person.created_at)))));
}

/** Returns the first letter of a person, as a reader would see it. */
function initial(person) {
  const [first] = new Intl.Segmenter().segment(person.name || person.external_id);
  return first ? first.segment.toLocaleUpperCase() : "?";
}
