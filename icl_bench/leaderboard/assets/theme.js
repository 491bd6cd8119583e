"use strict";
// Before the first paint, so that a chosen theme does not flash. A browser may refuse storage to
// pages from the file system: then the choice lasts as long as the page.
const themes = {
  stored() {
    try {
      return localStorage.getItem("icl-bench-theme");
    } catch {
      return null;
    }
  },
  store(theme) {
    try {
      localStorage.setItem("icl-bench-theme", theme);
    } catch {
      // nothing to do
    }
  },
  set(theme) {
    document.documentElement.dataset.theme = theme;
  },
  isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
};
if (["light", "dark"].includes(themes.stored())) themes.set(themes.stored());
