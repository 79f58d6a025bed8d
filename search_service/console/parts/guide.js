// Photos by camera, with guidance in words. The measures are those that decide about enrollment.

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { t } from "../i18n.js";
import { Camera, showFailure } from "./camera.js";

/** What to do about each problem, most important first. */
const ADVICE = {
  face_too_small: "guide.closer",
  face_turned_away: "guide.face_camera",
  face_badly_lit: "guide.light",
  face_too_blurry: "guide.still",
  detection_unsure: "guide.uncovered",
};

/** Answers in a row without a problem before a photo may be taken: one alone may be by chance. */
const GOOD_FRAMES = 2;

export class Guide {
  /** `ontaken` is called with each photo as a file. */
  constructor(ontaken) {
    this.ontaken = ontaken;
    this.taken = 0;
    this.good = 0;
    this.camera = new Camera();
    this.advice = h("p", { class: "advice", role: "status", "data-testid": "guidance" });
    this.take = h("button", { type: "button", class: "primary", disabled: true, "data-testid": "camera-take", onclick: () => this.keep() }, t("guide.take"));
    this.toggle = h("button", { type: "button", "data-testid": "camera-start", onclick: () => (this.camera.isOn ? this.stop() : this.start()) }, t("guide.start"));
    this.problem = h("div");
    this.view = h("div", { class: "stack tight", hidden: true }, this.camera.frame.element, this.advice);
    this.element = h("div", { class: "stack tight" }, this.view, this.problem, h("div", { class: "row" }, this.toggle, this.take));
    this.take.hidden = true;
  }

  async start() {
    if (!(await this.camera.startWith(this.toggle, this.problem))) return;
    this.view.hidden = this.take.hidden = false;
    this.toggle.textContent = t("camera.stop");
    this.say("guide.look", false);
    this.camera.run((frame) => this.look(frame));
  }

  stop() {
    this.camera.stop();
    this.view.hidden = this.take.hidden = true;
    this.toggle.textContent = t("guide.start");
  }

  async look(frame) {
    const form = new FormData();
    form.append("image", frame.blob, "frame.jpg");
    let faces;
    try {
      ({ faces } = await call(path("detect"), { method: "POST", form }));
      fill(this.problem);
    } catch (error) {
      await showFailure(this.problem, error);
      return;
    }
    if (!this.camera.isOn) return;
    const problem = problemOf(faces);
    this.good = problem === null ? this.good + 1 : 0;
    if (problem === null) this.frame = frame;
    this.camera.frame.draw(frame, faces.map((face) => ({ box: face.box, label: "", kind: problem === null ? "good" : "warn" })));
    this.say(problem ?? "guide.good", this.good >= GOOD_FRAMES);
  }

  say(key, ready) {
    const text = t(key);
    if (this.advice.textContent !== text) this.advice.textContent = text;
    this.advice.classList.toggle("good", key === "guide.good");
    this.take.disabled = !ready;
  }

  keep() {
    this.taken += 1;
    this.ontaken(new File([this.frame.blob], t("guide.file", { n: this.taken }), { type: "image/jpeg" }));
    this.good = 0;
    this.take.disabled = true;
  }
}

/** Returns the key of the advice for the first problem of a frame; null where a photo may be taken. */
function problemOf(faces) {
  if (faces.length === 0) return "guide.look";
  if (faces.length > 1) return "guide.alone";
  const reasons = faces[0].quality?.reasons ?? [];
  const known = Object.keys(ADVICE).find((reason) => reasons.includes(reason));
  if (known) return ADVICE[known];
  return reasons.length > 0 ? "guide.better" : null;
}
