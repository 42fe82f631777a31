"use strict";
// Tabs, levels, reasons, search and the story of a clip. All data is in the page; nothing is fetched.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const strips = data("strips"), stories = data("stories");
  const state = { tab: "overview", level: document.body.dataset.level, reason: "" };
  document.documentElement.classList.add("js");

  for (const image of all("img[data-strip]")) {
    const strip = strips[image.dataset.strip];
    if (strip) image.src = "data:image/jpeg;base64," + strip;
  }

  function show() {
    for (const tab of all(".tab")) tab.classList.toggle("on", tab.dataset.tab === state.tab);
    for (const level of all(".level")) level.classList.toggle("on", level.dataset.level === state.level);
    for (const button of all("button[data-tab]")) button.classList.toggle("on", button.dataset.tab === state.tab);
    for (const button of all("button[data-level]")) button.classList.toggle("on", button.dataset.level === state.level);
    const known = all(`.level.on .reason`).some((part) => part.dataset.reason === state.reason);
    const reason = known ? state.reason : "";
    for (const button of all("button[data-reason]")) button.classList.toggle("on", button.dataset.reason === reason);
    for (const part of all(".reason")) part.classList.toggle("hidden", reason !== "" && part.dataset.reason !== reason);
    history.replaceState(null, "", "#" + [state.tab, state.level, reason].filter(Boolean).map(encodeURIComponent).join("/"));
  }

  function open(figure) {
    const id = figure.dataset.clip, dialog = document.getElementById("story");
    dialog.querySelector("img").src = strips[id] ? "data:image/jpeg;base64," + strips[id] : "";
    dialog.querySelector("pre").textContent = stories[id] || id;
    dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const figure = event.target.closest("figure[data-clip]");
    if (button && button.dataset.tab) state.tab = button.dataset.tab;
    else if (button && button.dataset.level) state.level = button.dataset.level;
    else if (button && "reason" in button.dataset) state.reason = button.dataset.reason;
    else if (button && button.id === "close") return document.getElementById("story").close();
    else if (figure) return open(figure);
    else return undefined;
    return show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("figure[data-clip]")) open(event.target);
  });
  document.getElementById("search").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const figure of all("figure[data-clip]")) {
      figure.classList.toggle("hidden", !figure.textContent.toLowerCase().includes(wanted));
    }
  });

  const [tab, level, reason] = location.hash.slice(1).split("/").map(decodeURIComponent);
  if (all(".tab").some((part) => part.dataset.tab === tab)) state.tab = tab;
  if (all("button[data-level]").some((part) => part.dataset.level === level)) state.level = level;
  if (reason) state.reason = reason;
  show();
})();
