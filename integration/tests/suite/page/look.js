// What a test asks of a page, as `look.NAME()`.
const channels = (color) => color.match(/[\d.]+/g).map(Number);

function luminance(color) {
  const [red, green, blue] = channels(color)
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function ground(element) {
  const { backgroundColor } = getComputedStyle(element);
  const isSolid = (channels(backgroundColor)[3] ?? 1) === 1;
  if (isSolid) return backgroundColor;
  return element.parentElement ? ground(element.parentElement) : "rgb(255, 255, 255)";
}

function contrast(element) {
  const both = [luminance(getComputedStyle(element).color), luminance(ground(element))];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}

// WCAG 2.2, 1.4.3.
function least(element) {
  const { fontSize, fontWeight } = getComputedStyle(element);
  const isLarge = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
  return isLarge ? 3 : 4.5;
}

function texts() {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) found.push(walker.currentNode);
  const isSeen = (text) => text.data.trim() && text.parentElement.checkVisibility();
  return found.filter((text) => isSeen(text) && !text.parentElement.closest("option, noscript, .hidden-text"));
}

const $$ = (selector) => [...document.querySelectorAll(selector)];

globalThis.look = {
  pale() {
    const seen = texts();
    const pale = seen.filter(({ parentElement: element }) => contrast(element) < least(element));
    return seen.length < 20 ? ["little text was looked at"] : pale.map((text) => text.data);
  },
  tablesWithoutNames() {
    const isNamed = (table) =>
      table.caption?.innerText.trim() &&
      [...table.querySelectorAll("thead th")].every((head) => head.scope === "col") &&
      [...table.querySelectorAll("tbody tr")].every((row) => row.querySelector("th")?.scope === "row");
    return $$("table").filter((table) => !isNamed(table)).length;
  },
  // Levels that come without the one above.
  skippedHeadings() {
    const levels = $$("h1, h2, h3, h4").filter((h) => h.checkVisibility()).map((h) => Number(h.tagName[1]));
    return levels.filter((level, at) => level > (levels[at - 1] ?? 0) + 1).length;
  },
  focused() {
    const { ariaLabel, labels, innerText, tagName } = document.activeElement;
    return (ariaLabel || labels?.[0]?.innerText || innerText || tagName).trim();
  },
  button(words) {
    return $$("button").find((button) => button.offsetParent && button.innerText === words);
  },
  row(words) {
    return $$("tbody tr").find((row) => row.innerText.includes(words));
  },
  says: (words) => document.querySelector("main").innerText.replaceAll("\u00a0", " ").includes(words),
  rows: () => $$("tbody tr").length,
  lastLine: () => $$(".line").at(-1)?.textContent ?? "",
  logEnds() {
    const { scrollTop, scrollHeight, clientHeight } = document.querySelector(".lines");
    return scrollTop + clientHeight > scrollHeight - 40;
  },
  filter(text) {
    document.querySelector(".filters input").value = text;
    document.querySelector(".filters").dispatchEvent(new Event("input"));
  },
  tooWide: () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  // Nothing of the page's content does anything but show words and lead to other views.
  isHarmless() {
    const strange = $$("main img, main svg, main script, [onerror], [onload], iframe, object, embed");
    return globalThis.owned === undefined && !strange.length && $$("a").every((a) => a.origin === location.origin);
  },
  // Counts what is changed in the document from now on.
  watch() {
    look.touched = [];
    const what = { subtree: true, childList: true, characterData: true, attributes: true };
    new MutationObserver((changes) => look.touched.push(...changes.map(({ type }) => type))).observe(document.body, what);
  },
  async timeOfBothLists() {
    const before = performance.now();
    for (const hash of ["#/jobs", "#/tasks"]) {
      location.hash = hash;
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    }
    return performance.now() - before;
  },
};
