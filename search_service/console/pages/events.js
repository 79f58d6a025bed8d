// Events: who was seen where, as it is recorded, and attendance by day.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { day, t, timeOfDay, word, zone } from "../i18n.js";
import { KINDS, score } from "../parts/answer.js";
import { attendanceCard } from "../parts/attendance.js";
import { debounced, field } from "../parts/forms.js";
import { empty, failure, head, noGallery } from "../parts/notice.js";
import { follow } from "../parts/stream.js";
import { can, everywhere, gallery } from "../session.js";

const PAGE = 50;

/** Events on the page at a time: the oldest leave it when new ones come. */
const MOST = 500;
const TYPING_PAUSE = 300;

export function show(place) {
  fill(place, head(t("page.events"), t("events.intro", { zone: zone() })));
  if (gallery() === null) {
    place.append(noGallery(can("admin") && everywhere()));
    return null;
  }
  const page = new EventsPage();
  place.append(page.element);
  page.load();
  return () => page.close();
}

class EventsPage {
  constructor() {
    this.gallery = gallery();
    this.events = [];
    this.stop = () => {};
    this.turn = 0;
    const changed = debounced(() => this.load(), TYPING_PAUSE);
    const input = (type) => h("input", { type, autocomplete: "off", oninput: changed });
    const select = (kind, values) => h("select", { onchange: () => this.load() }, h("option", { value: "" }, t("events.any")),
      ...values.map((value) => h("option", { value }, word(kind, value))));
    this.controls = {
      decision: select("decision", ["match", "review", "no_match"]),
      direction: select("direction", ["in", "out"]),
      external_id: input("text"),
      device: input("text"),
      since: input("datetime-local"),
    };
    this.controls.decision.dataset.testid = "event-decision";
    this.state = h("span", { class: "chip", "data-testid": "stream-state" }, t("events.connecting"));
    this.problem = h("div");
    this.list = h("div", { class: "stack" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.older() }, t("common.more"));
    const labels = { decision: t("events.decision"), direction: t("live.direction"), external_id: t("person.id"), device: t("events.device"), since: t("events.since") };
    this.element = h("div", { class: "stack" },
      h("section", { class: "card", "aria-label": t("events.filters") },
        h("div", { class: "fields narrow" }, ...Object.entries(this.controls).map(([name, control]) => field(labels[name], control)))),
      h("section", { class: "card" }, h("div", { class: "row apart" }, h("h2", {}, t("events.timeline")), this.state), this.problem, this.list, h("div", { class: "row" }, this.more)),
      attendanceCard(this.gallery));
  }

  close() {
    this.turn += 1;
    this.stop();
  }

  query() {
    const query = { gallery: this.gallery };
    for (const [name, control] of Object.entries(this.controls)) query[name] = control.value.trim();
    if (query.since !== "") query.since = new Date(query.since).toISOString();
    return query;
  }

  /** Reads the latest events, and follows from there: an event recorded in between is in the stream. */
  async load() {
    this.close();
    const turn = this.turn;
    const query = this.query();
    try {
      const page = await call(path("events"), { query: { ...query, order: "newest", limit: PAGE } });
      if (turn !== this.turn) return;
      this.events = page.events;
      this.cursor = page.cursor;
      fill(this.problem);
      this.draw();
      this.stop = follow({
        query,
        last: page.events[0]?.id ?? 0,
        onevent: (event) => this.add(event),
        onstate: (connected) => this.showState(connected),
      });
    } catch (error) {
      if (turn === this.turn) fill(this.problem, failure(error));
    }
  }

  async older() {
    const turn = this.turn;
    try {
      const page = await call(path("events"), { query: { ...this.query(), order: "newest", limit: PAGE, cursor: this.cursor } });
      if (turn !== this.turn) return;
      this.events.push(...page.events);
      this.cursor = page.cursor;
      this.draw();
    } catch (error) {
      fill(this.problem, failure(error));
    }
  }

  showState(connected) {
    this.state.textContent = t(connected ? "events.live" : "events.lost");
    this.state.className = `chip ${connected ? "good" : "warn"}`;
  }

  add(event) {
    this.events.unshift(event);
    if (this.events.length > MOST) {
      this.events.pop();
      this.cursor = null; // what left the page is found again by filters
    }
    clearTimeout(this.drawing);
    this.drawing = setTimeout(() => this.draw(), 50); // many at once are drawn once
  }

  draw() {
    this.more.hidden = this.cursor === null;
    if (this.events.length === 0) {
      fill(this.list, empty(t("events.empty.title"), t("events.empty.text")));
      return;
    }
    const days = new Map();
    for (const event of this.events) {
      const name = day(event.at);
      if (!days.has(name)) days.set(name, []);
      days.get(name).push(event);
    }
    fill(this.list, [...days].map(([name, events]) => h("div", {}, h("h3", { class: "day" }, name), h("ul", { class: "timeline" }, ...events.map(eventRow)))));
  }
}

function eventRow(event) {
  const who = event.external_id === null ? h("span", { class: "muted" }, t("events.nobody"))
    : h("a", { href: `#people/${encodeURIComponent(event.external_id)}` }, h("span", { class: "name", dir: "auto" }, event.name || event.external_id));
  const where = [event.device, event.direction ? word("direction", event.direction) : null].filter(Boolean).join(" · ");
  return h("li", { "data-testid": "event", "data-event-id": event.id, "data-external-id": event.external_id ?? "" },
    h("time", { datetime: event.at }, timeOfDay(event.at)),
    h("span", { class: `chip ${KINDS[event.decision] ?? ""}` }, word("decision", event.decision)),
    h("span", { class: "who" }, who, event.name ? h("span", { class: "id", dir: "auto" }, event.external_id) : null),
    h("span", { class: "muted small where", dir: "auto" }, where),
    h("span", { class: "muted small score" }, event.score === null ? "" : score(event.score)));
}
