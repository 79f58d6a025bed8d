// Live: who stands before the camera?

import { call, path } from "../api.js";
import { fill, h } from "../dom.js";
import { number, t, word } from "../i18n.js";
import { KINDS, RATES, USUAL_RATE, decisionOf, displayName, rateSlider } from "../parts/answer.js";
import { Camera, showFailure } from "../parts/camera.js";
import { head, noGallery, notice } from "../parts/notice.js";
import { can, everywhere, gallery } from "../session.js";

const TOP_K = 2;

export function show(place) {
  fill(place, head(t("page.live"), t("live.intro")));
  if (gallery() === null) {
    place.append(noGallery(can("admin") && everywhere()));
    return null;
  }
  const page = new LivePage();
  place.append(page.element);
  return () => page.stop();
}

class LivePage {
  constructor() {
    this.gallery = gallery();
    this.camera = new Camera();
    this.rate = USUAL_RATE;
    this.button = h("button", { type: "button", class: "primary", "data-testid": "camera-start", onclick: () => this.toggle() }, t("camera.start"));
    this.speed = h("span", { class: "muted small", "data-testid": "answer-time" });
    this.problem = h("div");
    this.answers = h("div", { class: "answer", "aria-live": "polite" }, h("p", { class: "muted hint" }, t("live.empty")));
    this.view = h("div", { class: "view off" }, this.camera.frame.element, h("p", { class: "muted" }, t("live.off")));
    this.record = h("input", { type: "checkbox", id: "record", onchange: () => this.showRecording() });
    this.device = h("input", { id: "device", value: "console", maxlength: 200, autocomplete: "off" });
    this.direction = h("select", { id: "direction" },
      h("option", { value: "" }, t("direction.none")),
      h("option", { value: "in" }, word("direction", "in")),
      h("option", { value: "out" }, word("direction", "out")));
    this.options = h("div", { class: "fields", hidden: true },
      h("div", { class: "field" }, h("label", { for: "device" }, t("live.device")), this.device),
      h("div", { class: "field" }, h("label", { for: "direction" }, t("live.direction")), this.direction));
    this.element = h("div", { class: "columns" },
      h("section", { class: "card", "aria-label": t("camera.view") }, this.view, this.problem,
        h("div", { class: "row apart" }, this.button, this.speed)),
      h("section", { class: "card", "aria-label": t("search.result") },
        rateSlider(this.rate, (index) => { this.rate = index; }),
        h("div", { class: "stack" }, h("label", { class: "check" }, this.record, t("live.record")), this.options),
        this.answers));
  }

  showRecording() {
    this.options.hidden = !this.record.checked;
  }

  async toggle() {
    if (this.camera.isOn) {
      this.stop();
      return;
    }
    if (!(await this.camera.startWith(this.button, this.problem))) return;
    this.view.classList.remove("off");
    this.button.textContent = t("camera.stop");
    this.camera.run((frame) => this.look(frame));
  }

  stop() {
    this.camera.stop();
    this.view.classList.add("off");
    this.button.textContent = t("camera.start");
    this.camera.frame.draw({ width: 1, height: 1 }, []);
    this.speed.textContent = "";
    fill(this.problem);
    fill(this.answers, h("p", { class: "muted hint" }, t("live.empty")));
  }

  /** Searches the faces of one frame and shows the answer. */
  async look(frame) {
    const form = new FormData();
    form.append("image", frame.blob, "frame.jpg");
    form.append("all_faces", "true");
    form.append("top_k", TOP_K);
    form.append("fpir", RATES[this.rate]);
    if (this.record.checked && this.device.value.trim() !== "") {
      form.append("record", "true");
      form.append("device", this.device.value.trim());
      if (this.direction.value) form.append("direction", this.direction.value);
    }
    const began = performance.now();
    try {
      const answer = await call(path("galleries", this.gallery, "search"), { method: "POST", form });
      if (!this.camera.isOn) return;
      this.draw(answer.faces, frame);
      fill(this.problem);
    } catch (error) {
      if (!this.camera.isOn) return;
      this.draw([], frame);
      if (error.code !== "no_face") await showFailure(this.problem, error);
    }
    if (this.camera.isOn) {
      this.speed.textContent = t("live.speed", { milliseconds: number(performance.now() - began) });
    }
  }

  draw(faces, frame) {
    this.camera.frame.draw(frame, faces.map((face) => ({
      box: face.box,
      label: face.decision === "no_match" || face.candidates.length === 0
        ? word("decision", face.decision) : displayName(face.candidates[0]),
      kind: KINDS[face.decision] ?? "calm",
    })));
    if (faces.length === 0) {
      fill(this.answers, h("p", { class: "muted hint" }, t("live.nobody")));
      return;
    }
    fill(this.answers, faces.map((face) => h("div", { class: "stack tight" }, decisionOf(face), recorded(face.event))));
  }
}

function recorded(event) {
  if (!event) return null;
  return notice(event.recorded ? "good" : "info", t(event.recorded ? "live.recorded" : "live.recorded_before"));
}
