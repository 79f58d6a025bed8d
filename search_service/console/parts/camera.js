// The browser's camera, and frames of it as files.

import { fill, h } from "../dom.js";
import { t } from "../i18n.js";
import { keepAwake } from "../session.js";
import { failure } from "./notice.js";
import { framed } from "./picture.js";

/** Pixels across a frame that is sent. Faces of people at a door have 100 pixels or more then. */
const FRAME_WIDTH = 960;
const JPEG_QUALITY = 0.9;

/** How long the next frame waits after an answer, in milliseconds: at most five frames a second. */
const PAUSE = 200;

/** How long the next frame waits after an error, in milliseconds. */
const PAUSE_AFTER_ERROR = 2000;

/** Shows an error of a request for a frame, and resolves when the next frame may be sent. */
export function showFailure(place, error) {
  fill(place, failure(error));
  return new Promise((resolve) => setTimeout(resolve, PAUSE_AFTER_ERROR));
}

/** A camera with the picture that it shows. `start` may ask the user for permission. */
export class Camera {
  constructor() {
    this.video = h("video", { "data-testid": "camera-view", playsinline: true, "aria-label": t("camera.view") });
    this.video.muted = true;
    this.frame = framed(this.video);
    this.canvas = document.createElement("canvas");
    this.stream = null;
    this.release = () => {};
  }

  get isOn() {
    return this.stream !== null;
  }

  /** @throws {Error} with a text for the user. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error(t("camera.insecure"));
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { facingMode: "user", width: { ideal: 1280 }, height: { ideal: 720 } },
      });
    } catch (error) {
      const known = { NotAllowedError: "camera.denied", NotFoundError: "camera.missing", NotReadableError: "camera.busy" };
      throw new Error(t(known[error.name] ?? "camera.failed"));
    }
    this.release = keepAwake();
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  /** Starts the camera for a button, and shows in `problem` why it could not. Returns whether it is on. */
  async startWith(button, problem) {
    fill(problem);
    button.disabled = true;
    try {
      await this.start();
      return true;
    } catch (error) {
      this.stop();
      fill(problem, failure(error));
      return false;
    } finally {
      button.disabled = false;
    }
  }

  stop() {
    this.release();
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
  }

  /** Returns the current frame as a JPEG, with its size. */
  async take() {
    const scale = Math.min(1, FRAME_WIDTH / this.video.videoWidth);
    this.canvas.width = Math.round(this.video.videoWidth * scale);
    this.canvas.height = Math.round(this.video.videoHeight * scale);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    const blob = await new Promise((resolve) => this.canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
    return { blob, width: this.canvas.width, height: this.canvas.height };
  }

  /**
   * Calls `look` with one frame after the other while the camera is on: the next one when the last call has ended, so
   * that no more than one request waits. Frames are skipped while the page is hidden.
   */
  async run(look) {
    const stream = this.stream;
    while (this.stream !== null && this.stream === stream) {
      if (document.visibilityState === "visible" && this.video.videoWidth > 0) await look(await this.take());
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}
