// Starts the page: signs in, shows the frame with the navigation, and the page that the address names.

import { fill, h, icon } from "./dom.js";
import { LANGUAGES, chooseLanguage, currentLanguage, loadTexts, t } from "./i18n.js";
import { errorText } from "./parts/notice.js";
import * as session from "./session.js";

/** The pages, in the order of the navigation, with the scope that each needs. */
const PAGES = [
  { name: "live", scope: "search" },
  { name: "search", scope: "search" },
  { name: "people", scope: "enroll" },
  { name: "events", scope: "admin" },
  { name: "gallery", scope: "search" },
];

const app = document.getElementById("app");
let leave = () => {};
let shown = 0;

/** Returns the page and the rest of the address, such as a person's id. */
function address() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const page = PAGES.find((one) => one.name === name && session.can(one.scope));
  return { page: page ?? PAGES.find((one) => one.name === "search"), rest: page ? decoded(rest.join("/")) : "" };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function languageChoice() {
  const options = Object.entries(LANGUAGES).map(([tag, name]) =>
    h("option", { value: tag, selected: tag === currentLanguage() }, name));
  const select = h("select", { class: "quiet", "aria-label": t("frame.language") }, ...options);
  select.addEventListener("change", async () => {
    await chooseLanguage(select.value);
    if (session.can("search")) showFrame();
    else showSignIn({});
  });
  return select;
}

function galleryChoice() {
  const options = session.galleries().map((one) =>
    h("option", { value: one.name, selected: one.name === session.gallery() }, one.name));
  const select = h("select", { id: "gallery", "data-testid": "gallery" }, ...options);
  if (options.length === 0) {
    select.append(h("option", {}, t("frame.no_gallery")));
    select.disabled = true;
  }
  select.addEventListener("change", () => {
    session.chooseGallery(select.value);
    showPage();
  });
  return h("label", { class: "gallery-choice" }, h("span", {}, t("frame.gallery")), select);
}

function showFrame() {
  const links = PAGES.filter((one) => session.can(one.scope)).map((one) =>
    h("a", { href: `#${one.name}`, "data-page": one.name }, icon(one.name), h("span", {}, t(`page.${one.name}`))));
  const who = session.hasKey()
    ? [h("span", { class: "who", title: session.keyName() }, session.keyName()),
      h("button", { type: "button", class: "quiet", "data-testid": "sign-out", onclick: session.signOut },
        icon("leave"), h("span", {}, t("frame.sign_out")))]
    : [h("span", { class: "who" }, t("frame.open"))];
  fill(app,
    h("a", { href: "#content", class: "skip", onclick: skip }, t("frame.skip")),
    h("header", { class: "top" },
      h("a", { class: "brand", href: "#search" }, h("img", { src: "icon.svg", alt: "", width: 28, height: 28 }),
        h("span", {}, "whosthere")),
      galleryChoice(),
      h("div", { class: "account" }, languageChoice(), ...who)),
    h("nav", { class: "pages", "aria-label": t("frame.pages") }, ...links),
    h("main", { id: "content", tabindex: -1 }));
  showPage();
}

function skip(event) {
  event.preventDefault();
  document.getElementById("content").focus();
}

async function showPage() {
  const content = document.getElementById("content");
  if (content === null) return;
  leave();
  leave = () => {};
  const mine = ++shown;
  const { page, rest } = address();
  for (const link of document.querySelectorAll("nav.pages a")) {
    if (link.dataset.page === page.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(`page.${page.name}`)} · whosthere`;
  const place = fill(content, h("div", { class: "page" })).firstChild;
  const { show } = await import(`./pages/${page.name}.js`);
  if (mine !== shown) return;
  const left = await show(place, { rest, reload: showFrame });
  if (mine !== shown) left?.();
  else leave = left ?? (() => {});
}

function showSignIn({ idle, error }) {
  leave();
  leave = () => {};
  shown++;
  const input = h("input", {
    id: "key", type: "password", "data-testid": "api-key", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "key-help", placeholder: "wt_…",
  });
  const problem = h("p", { class: "notice bad", role: "alert", hidden: true });
  const button = h("button", { type: "submit", class: "primary", "data-testid": "sign-in" }, t("sign_in.button"));
  const report = (text) => {
    problem.textContent = text;
    problem.hidden = false;
  };
  const form = h("form", { class: "card sign-in", novalidate: true },
    h("img", { src: "icon.svg", alt: "", width: 48, height: 48 }),
    h("h1", {}, t("sign_in.title")),
    h("p", { class: "muted" }, t("sign_in.intro")),
    h("div", { class: "field" }, h("label", { for: "key" }, t("sign_in.key")), input),
    problem, button,
    h("p", { class: "muted small", id: "key-help" }, t("sign_in.help")),
    languageChoice());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = input.value.trim();
    // The key goes into a header, which cannot carry other characters; a key has none of them.
    if (!/^[\x21-\x7e]+$/.test(key)) {
      report(t("sign_in.malformed"));
      return;
    }
    button.disabled = true;
    try {
      await session.signIn(key, showSignIn);
      input.value = "";
      showFrame();
    } catch (failure) {
      report(errorText(failure));
      button.disabled = false;
      input.select();
    }
  });
  document.title = `${t("sign_in.title")} · whosthere`;
  fill(app, h("main", { class: "door" }, form));
  if (idle) report(t("sign_in.idle"));
  else if (error) report(errorText(error));
  input.focus();
}

async function start() {
  await loadTexts();
  try {
    if (await session.needsKey()) {
      showSignIn({});
    } else {
      await session.signIn(null, showSignIn);
      showFrame();
    }
  } catch (error) {
    showSignIn({ error });
  }
  addEventListener("hashchange", showPage);
}

start();
