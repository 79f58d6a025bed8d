// The answer to a search: the decision with its reasons, and the candidates as bars against the threshold.

import { h } from "../dom.js";
import { number, percent, t, word } from "../i18n.js";
import { can } from "../session.js";

/** Digits of a cosine. */
const DIGITS = 2;

export const KINDS = { match: "good", no_match: "calm", review: "warn" };

export function score(value) {
  return number(value, DIGITS);
}

export function displayName(person) {
  return person.name || person.external_id;
}

/** Returns the decision on a face, with what it rests on. */
export function decisionOf(face) {
  const best = face.candidates[0];
  const who = face.decision === "no_match" || !best ? null
    : h("p", { class: "who", dir: "auto" }, displayName(best));
  const reasons = face.reasons.map((reason) => h("li", {}, word("reason", reason)));
  return h("div", { class: `decision ${KINDS[face.decision] ?? "calm"}`, "data-testid": "decision", "data-decision": face.decision },
    h("p", { class: "verdict" }, word("decision", face.decision)),
    who,
    reasons.length > 0 ? h("ul", { class: "reasons" }, ...reasons) : null,
    face.liveness ? livenessOf(face.liveness) : null);
}

function livenessOf(liveness) {
  const text = t(liveness.live ? "liveness.live" : "liveness.not_live", { score: number(liveness.score, DIGITS) });
  return h("p", { class: `chip ${liveness.live ? "good" : "bad"}` }, text);
}

/** Returns the candidates of a face, best first. */
export function candidatesOf(face) {
  if (face.candidates.length === 0) {
    return h("p", { class: "muted" }, t(can("investigate") ? "candidates.none" : "candidates.none_above"));
  }
  const list = h("ol", { class: "candidates" }, ...face.candidates.map((one) => candidateOf(one, face.threshold)));
  const note = can("investigate") ? null : h("p", { class: "muted small" }, t("candidates.limited"));
  return h("div", {}, list, note);
}

function candidateOf(candidate, threshold) {
  const above = candidate.score >= threshold;
  const bar = h("div", { class: "fill" });
  bar.style.width = position(candidate.score);
  const line = h("div", { class: "threshold" });
  line.style.left = position(threshold);
  const name = h("span", { class: "name", dir: "auto" }, displayName(candidate));
  const id = candidate.name ? h("span", { class: "id", dir: "auto" }, candidate.external_id) : null;
  const label = can("enroll") && candidate.external_id
    ? h("a", { href: `#people/${encodeURIComponent(candidate.external_id)}` }, name) : name;
  return h("li", { class: above ? "candidate above" : "candidate", "data-testid": "candidate", "data-external-id": candidate.external_id },
    h("div", { class: "line" }, h("span", { class: "person" }, label, id), h("span", { class: "score" }, score(candidate.score))),
    h("div", { class: "bar", role: "img", "aria-label": t(above ? "candidates.above" : "candidates.below", { score: score(candidate.score), threshold: score(threshold) }) },
      bar, line));
}

/** Returns where a cosine is on a bar. Below zero there is nothing to compare. */
function position(cosine) {
  return `${Math.round(1000 * Math.min(1, Math.max(0, cosine))) / 10}%`;
}

/** The rates that can be chosen, from strict to lenient. */
export const RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3];
export const USUAL_RATE = RATES.indexOf(0.01);

/**
 * Returns the slider for the false positive identification rate, with what the choice means in words. Only keys that
 * may investigate can be more lenient than the service.
 */
export function rateSlider(index, onchange) {
  const meaning = h("output", { class: "meaning", for: "rate" });
  const slider = h("input", {
    type: "range", id: "rate", "data-testid": "fpir", min: 0, max: can("investigate") ? RATES.length - 1 : USUAL_RATE, step: 1, value: index,
  });
  const describe = () => {
    const rate = RATES[slider.valueAsNumber];
    meaning.textContent = t("rate.meaning", { n: Math.round(1 / rate) });
    slider.setAttribute("aria-valuetext", `${percent(rate, 2)}: ${meaning.textContent}`);
  };
  slider.addEventListener("input", () => {
    describe();
    onchange(slider.valueAsNumber);
  });
  describe();
  return h("div", { class: "rate" }, h("label", { for: "rate" }, t("rate.title")), slider,
    h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, t("rate.strict")), h("span", {}, t("rate.lenient"))), meaning);
}
