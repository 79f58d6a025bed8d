// The texts of the page in the user's language, and how it writes numbers and times.

export const LANGUAGES = { en: "English", de: "Deutsch" };
const FALLBACK = "en";
const STORED = "whosthere.language";

let language = FALLBACK;
let texts = {};
let fallback = {};

/** Loads the texts of the stored language, else of the first one that the browser prefers. */
export async function loadTexts() {
  const wanted = [stored(), ...navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase())];
  language = wanted.find((tag) => tag in LANGUAGES) ?? FALLBACK;
  fallback = await read(FALLBACK);
  texts = language === FALLBACK ? fallback : await read(language);
  document.documentElement.lang = language;
}

/** Changes the language, also for the next visit. */
export async function chooseLanguage(tag) {
  try {
    localStorage.setItem(STORED, tag);
  } catch {
    // Storage may be forbidden; the choice then lasts until the page is left.
  }
  language = tag;
  texts = await read(tag);
  document.documentElement.lang = tag;
}

export function currentLanguage() {
  return language;
}

function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

async function read(tag) {
  const answer = await fetch(new URL(`texts/${tag}.json`, document.baseURI));
  return answer.json();
}

/**
 * Returns a text with its `{placeholders}` replaced. With `n`, the entry `key.one` or `key.other` is used where the
 * language distinguishes them.
 */
export function t(key, values = {}) {
  let text = lookUp(key);
  if (text === undefined && "n" in values) {
    text = lookUp(`${key}.${new Intl.PluralRules(language).select(values.n)}`) ?? lookUp(`${key}.other`);
  }
  if (text === undefined) return key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    if (value === undefined) return whole;
    return typeof value === "number" ? number(value) : String(value);
  });
}

/** Returns the text of a value of an enumeration; of one that is newer than this page, the value in words. */
export function word(kind, value) {
  return lookUp(`${kind}.${value}`) ?? String(value).replaceAll("_", " ");
}

function lookUp(key) {
  return texts[key] ?? fallback[key];
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function percent(share, digits = 1) {
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: digits }).format(share);
}

/** Returns a time in the viewer's zone. */
export function dateTime(iso) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(iso));
}

export function timeOfDay(iso) {
  return new Intl.DateTimeFormat(language, { timeStyle: "medium" }).format(new Date(iso));
}

export function day(iso) {
  return new Intl.DateTimeFormat(language, { dateStyle: "full" }).format(new Date(iso));
}

export function zone() {
  return Intl.DateTimeFormat().resolvedOptions().timeZone;
}
