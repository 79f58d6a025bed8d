// Gallery: its size, index, thresholds and lookalikes; enrollments of many photos; webhooks and keys for administrators.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { dateTime, number, percent, t, word } from "../i18n.js";
import { score } from "../parts/answer.js";
import { busy, field, openDialog } from "../parts/forms.js";
import { jobsCard } from "../parts/jobs.js";
import { keysCard } from "../parts/keys.js";
import { empty, failure, head, spinner } from "../parts/notice.js";
import { webhooksCard } from "../parts/webhooks.js";
import { can, chooseGallery, everywhere, gallery, loadGalleries } from "../session.js";

export function show(place, { reload }) {
  const mayCreate = can("admin") && everywhere();
  const create = mayCreate
    ? h("button", { type: "button", "data-testid": "gallery-create", onclick: () => createGallery(reload) }, t("gallery.create")) : null;
  fill(place, head(t("page.gallery"), t("gallery.intro"), ...(create ? [create] : [])));
  const closing = [];
  const name = gallery();
  if (name === null) {
    place.append(empty(t("empty.gallery.title"), t(mayCreate ? "empty.gallery.create" : "empty.gallery.ask")));
  } else {
    const state = h("section", { class: "card", "aria-label": t("gallery.state") }, spinner());
    place.append(h("div", { class: "grid" }, state, can("enroll") ? lookalikesCard(name) : null));
    showState(state, name);
    if (can("admin")) place.append(thresholdsCard(name));
    if (can("enroll")) {
      const jobs = jobsCard(name, () => showState(state, name));
      closing.push(jobs.close);
      place.append(jobs.element);
    }
  }
  if (can("admin")) place.append(webhooksCard(name));
  if (mayCreate) place.append(keysCard());
  return () => closing.forEach((close) => close());
}

async function showState(place, name) {
  try {
    const [found, models] = await Promise.all([call(path("galleries", name)), call(path("models"))]);
    const model = models.models.find((one) => one.name === found.model);
    fill(place, h("div", { class: "numbers" },
      h("div", {}, h("strong", { "data-testid": "identities" }, number(found.identities)), h("span", {}, t("gallery.people", { n: found.identities }))),
      h("div", {}, h("strong", {}, number(found.faces)), h("span", {}, t("gallery.photos", { n: found.faces })))),
    h("dl", { class: "facts" },
      h("dt", {}, t("gallery.model")), h("dd", {}, found.model, model?.summary ? h("p", { class: "muted small" }, model.summary) : null),
      h("dt", {}, t("gallery.index")), h("dd", {}, t("gallery.index_state", { kind: word("index", found.index.kind), n: found.index.faces }), " ", indexChip(found)),
      h("dt", {}, t("gallery.created")), h("dd", {}, dateTime(found.created_at))));
  } catch (error) {
    fill(place, failure(error));
  }
}

function indexChip({ faces, index }) {
  return faces === index.faces ? h("span", { class: "chip good" }, t("gallery.index_current"))
    : h("span", { class: "chip warn" }, t("gallery.index_behind"));
}

/** Returns the check of the gallery itself: the most similar people, and photos unlike their person. */
function lookalikesCard(name) {
  const result = h("div", { class: "stack", "aria-live": "polite" });
  const button = h("button", { type: "button", "data-testid": "lookalikes" }, t("lookalikes.button"));
  button.addEventListener("click", () => busy(button, result, async () => {
    const found = await call(path("galleries", name, "duplicates"), { query: { limit: 20 } });
    const none = found.pairs.length + found.wrong_photos.length + found.outliers.length === 0;
    fill(result, none ? h("p", { class: "notice good" }, t("lookalikes.none", { threshold: score(found.threshold) })) : null,
      pairList(t("lookalikes.pairs"), found.pairs.map((one) => [one.identities[0], one.identities[1], one.score])),
      pairList(t("lookalikes.wrong"), found.wrong_photos.map((one) => [one.face, one.looks_like, one.score])),
      pairList(t("lookalikes.outliers"), found.outliers.map((one) => [one.face, null, one.own_score])));
  }));
  return h("section", { class: "card" }, h("h2", {}, t("lookalikes.title")), h("p", { class: "muted" }, t("lookalikes.text")),
    h("div", { class: "row" }, button), result);
}

function pairList(title, pairs) {
  if (pairs.length === 0) return null;
  const link = (side) => h("a", { href: `#people/${encodeURIComponent(side.external_id)}`, dir: "auto" }, side.name || side.external_id);
  return h("div", {}, h("h3", {}, title), h("table", {}, h("tbody", {}, ...pairs.map(([one, other, cosine]) =>
    h("tr", {}, h("td", {}, link(one)), h("td", {}, other ? link(other) : ""), h("td", { class: "number" }, score(cosine)))))));
}

/** Returns the thresholds with how far they can be trusted. Measuring takes seconds, so it is started by hand. */
function thresholdsCard(name) {
  const result = h("div", { class: "stack", "aria-live": "polite" });
  const button = h("button", { type: "button", "data-testid": "calibrate" }, t("thresholds.button"));
  button.addEventListener("click", () => busy(button, result, async () => {
    const found = await call(path("galleries", name, "calibration"), { method: "POST" });
    fill(result, h("p", { class: "notice info" }, found.summary), thresholdTable(found));
  }));
  return h("section", { class: "card" }, h("div", { class: "row apart" }, h("h2", {}, t("thresholds.title")), button),
    h("p", { class: "muted" }, t("thresholds.text")), result);
}

function thresholdTable({ thresholds, interval_percent: [low, high] }) {
  const rows = thresholds.map((one) => h("tr", {},
    h("td", {}, t("thresholds.rate", { n: Math.round(1 / one.fpir), share: percent(one.fpir, 2) })),
    h("td", {}, rangeBar(one)),
    h("td", { class: "number" }, score(one.threshold)),
    h("td", { class: "number" }, one.low === null ? "–" : `${score(one.low)} – ${score(one.high)}`),
    h("td", { class: "number" }, one.fnir === null ? "–" : percent(one.fnir)),
    h("td", {}, word("basis", one.basis))));
  return h("div", { class: "scroll", tabindex: 0 }, h("table", {}, h("thead", {}, h("tr", {},
    h("th", {}, t("thresholds.strangers")), h("th", {}, h("span", { class: "visually-hidden" }, t("thresholds.range"))),
    h("th", { class: "number" }, t("thresholds.threshold")), h("th", { class: "number" }, t("thresholds.interval", { share: percent((high - low) / 100, 0) })),
    h("th", { class: "number" }, t("thresholds.missed")), h("th", {}, t("thresholds.basis")))), h("tbody", {}, ...rows)));
}

/** Returns a line from 0 to 1 with the threshold and the interval in which it is. */
function rangeBar({ threshold, low, high }) {
  const bar = h("div", { class: "bar range" });
  if (low !== null) {
    const span = h("div", { class: "fill" });
    span.style.left = `${100 * Math.max(0, low)}%`;
    span.style.width = `${100 * Math.max(0, high - Math.max(0, low))}%`;
    bar.append(span);
  }
  const line = h("div", { class: "threshold" });
  line.style.left = `${100 * Math.min(1, Math.max(0, threshold))}%`;
  bar.append(line);
  return bar;
}

async function createGallery(reload) {
  const name = h("input", { "data-testid": "gallery-name", maxlength: 200, autocomplete: "off", spellcheck: "false" });
  const model = h("select", {});
  const found = await call(path("models"));
  for (const one of found.models.filter((pack) => pack.installed)) {
    model.append(h("option", { value: one.name, selected: one.name === found.default }, one.name));
  }
  openDialog(t("gallery.create"), [field(t("gallery.name"), name, t("gallery.name_help")), field(t("gallery.model"), model)], {
    text: t("gallery.create"),
    work: async () => {
      const made = await call(path("galleries"), { method: "POST", json: { name: name.value.trim(), model: model.value } });
      await loadGalleries();
      chooseGallery(made.name);
      reload();
    },
  });
}

