// Who uses the page: the key's permissions, the galleries, and the end of the session when nobody is there.

import { ApiError, call, path, useKey } from "./api.js";

/** After which a session with a key ends. OWASP recommends 15 to 30 minutes for applications of low risk. */
const IDLE_MINUTES = 15;
const CHECK_SECONDS = 15;

const state = { own: null, hasKey: false, galleries: [], gallery: null };
const busy = new Set();
let lastUse = 0;
let timer = null;
let onEnd = () => {};

for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"]) {
  addEventListener(kind, () => { lastUse = Date.now(); }, { passive: true, capture: true });
}

/** Whether the service answers only with a key. */
export async function needsKey() {
  return (await call(path("access"))).key_needed;
}

/**
 * Starts a session, without a key where the service needs none.
 * @param {?string} key
 * @param {(why: {idle?: boolean, error?: ApiError}) => void} ended Called once when the session ends by itself.
 * @throws {ApiError} where the key is not accepted.
 */
export async function signIn(key, ended) {
  useKey(key, (error) => end({ error }));
  try {
    state.own = await call(path("keys", "self"));
  } catch (error) {
    useKey(null, () => {});
    throw error;
  }
  state.hasKey = key !== null;
  onEnd = ended;
  await loadGalleries();
  lastUse = Date.now();
  if (state.hasKey) timer = setInterval(check, CHECK_SECONDS * 1000);
}

/** Ends the session and forgets the key. */
export function signOut() {
  end({});
}

function end(why) {
  if (state.own === null) return;
  clearInterval(timer);
  useKey(null, () => {});
  Object.assign(state, { own: null, hasKey: false, galleries: [], gallery: null });
  onEnd(why);
}

function check() {
  if (busy.size > 0) lastUse = Date.now();
  if (Date.now() - lastUse >= IDLE_MINUTES * 60_000) end({ idle: true });
}

/** Keeps the session from ending, such as while a camera is on. Returns the function that allows it again. */
export function keepAwake() {
  const mark = {};
  busy.add(mark);
  return () => busy.delete(mark);
}

export function can(scope) {
  return state.own !== null && state.own.scopes.includes(scope);
}

/** Whether the key opens every gallery, as creating galleries and keys needs. */
export function everywhere() {
  return state.own !== null && state.own.galleries === null;
}

export function keyName() {
  return state.own?.name ?? null;
}

export function hasKey() {
  return state.hasKey;
}

export function galleries() {
  return state.galleries;
}

/** The name of the chosen gallery; null where there is none. */
export function gallery() {
  return state.gallery;
}

export function chooseGallery(name) {
  state.gallery = name;
}

/** Reads the galleries again and keeps the chosen one, if it still exists. */
export async function loadGalleries() {
  const found = [];
  let cursor = null;
  do {
    const page = await call(path("galleries"), { query: { limit: 1000, cursor } });
    found.push(...page.galleries);
    cursor = page.cursor;
  } while (cursor !== null);
  state.galleries = found;
  const names = found.map((one) => one.name);
  if (!names.includes(state.gallery)) {
    const largest = found.reduce((best, one) => (best === null || one.identities > best.identities ? one : best), null);
    state.gallery = largest?.name ?? null;
  }
}
