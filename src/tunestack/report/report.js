"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Theme: the system's unless the reader chose; the choice is kept where the browser allows it.
  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("tunestack-theme"); } catch { return null; } })();
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  const toggle = document.getElementById("theme");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("tunestack-theme", root.dataset.theme); } catch { /* not kept, no harm */ }
  });

  // Sorting: each head cell gets a button; the second activation turns the order round; gaps stay last,
  // and as many rows are shown as before.
  const board = document.querySelector(".board");
  const heads = all("thead th", board);
  const body = board.tBodies[0];
  const select = document.getElementById("sort-by");
  const sortBy = (head, turn) => {
    const first = head.dataset.sort === "down" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const order = turn && head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    select.value = String(head.cellIndex);
    const sign = order === "ascending" ? 1 : -1;
    const text = head.dataset.sort === "text";
    const value = (row) => row.cells[head.cellIndex].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (text ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    };
    const shown = [...body.rows].filter((row) => !row.hidden).length;
    const ordered = [...body.rows].sort(compare);
    ordered.forEach((row, place) => { row.hidden = row.toggleAttribute("data-extra", place >= shown); });
    body.append(...ordered);
  };
  for (const head of heads.filter((one) => one.dataset.sort)) {
    const label = head.textContent.trim();
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => sortBy(head, true));
    head.replaceChildren(button);
    select.add(new Option(label === "#" ? "Rank" : label, String(head.cellIndex)));
  }
  select.addEventListener("change", () => sortBy(heads[Number(select.value)], false));
  select.closest("[hidden]").hidden = false;

  // Switches between views of one section.
  for (const input of all(".switch input")) {
    input.addEventListener("change", () => {
      for (const view of all(`.view[data-view^="${input.name}:"]`)) {
        view.hidden = view.dataset.view !== `${input.name}:${input.value}`;
      }
      placeLabels();
    });
  }

  // Long lists: the rest is shown on request.
  for (const button of all("button.more")) {
    button.addEventListener("click", () => {
      const extras = all("[data-extra]", button.previousElementSibling);
      extras.forEach((extra) => { extra.hidden = false; });
      button.remove();
      extras[0].setAttribute("tabindex", "-1");
      extras[0].focus({ preventScroll: true });
    });
  }

  // Names beside the points: the important ones first, each where it covers nothing, else not at all. Among
  // many points only the recommended, the best and the frontier are named: others could be mistaken for a
  // neighbour's. The recommended one may also stand further off.
  const MANY = 12;
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const spots = [[11, -9, "start"], [11, 17, "start"], [-11, -9, "end"], [-11, 17, "end"], [0, -16, "middle"], [0, 26, "middle"]];
  const far = [40, 60, 80, 100].flatMap((dy) => [[0, -dy, "middle"], [0, dy, "middle"], [0, -dy, "end"], [0, dy, "end"]]);
  function placeLabels() {
    for (const chart of all(".scatter > svg")) {
      const frame = chart.getBoundingClientRect();
      if (!frame.width) continue;
      const taken = all(".mark", chart).map((mark) => mark.getBoundingClientRect());
      const labels = all(".label", chart).sort((a, b) => a.dataset.priority - b.dataset.priority);
      for (const label of labels) {
        const wanted = labels.length <= MANY || label.dataset.priority < 3;
        const free = wanted && (label.dataset.priority === "0" ? [...spots, ...far] : spots).some(([dx, dy, anchor]) => {
          label.setAttribute("dx", dx);
          label.setAttribute("dy", dy);
          label.setAttribute("text-anchor", anchor);
          const box = label.getBoundingClientRect();
          const inside = box.left >= frame.left && box.right <= frame.right + 8 && box.bottom <= frame.bottom && box.top >= frame.top - 12;
          return inside && !taken.some((other) => overlaps(box, other));
        });
        label.classList.toggle("crowded", !free);
        if (free) taken.push(label.getBoundingClientRect());
      }
    }
  }
  placeLabels();
  addEventListener("resize", placeLabels);

  // One tooltip for whatever has data-tip (a trial's mark: what its row says); a candidate lights up wherever it appears.
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const light = (target, on) => {
    const key = target.closest("[data-c]")?.dataset.c;
    if (key !== undefined) all(`[data-c="${key}"]`).forEach((one) => one.classList.toggle("hot", on));
  };
  const show = (target) => {
    const text = target.dataset.tip || document.querySelector(`tr[data-c="${target.dataset.c}"]`).dataset.about;
    const [first, ...rest] = text.split("\n");
    const strong = document.createElement("strong");
    strong.textContent = first;
    tip.replaceChildren(strong, ...rest.map((line) => { const div = document.createElement("div"); div.textContent = line; return div; }));
    tip.hidden = false;
    const at = (target.querySelector(".hit") ?? target).getBoundingClientRect();
    const box = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left + at.width / 2 - box.width / 2, root.clientWidth - box.width - 8));
    const top = at.top - box.height - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${top < 8 ? at.bottom + 8 : top}px`;
  };
  for (const target of all("[data-tip]")) {
    target.addEventListener("pointerenter", () => show(target));
    target.addEventListener("focus", () => show(target));
    target.addEventListener("pointerleave", hide);
    target.addEventListener("blur", hide);
  }
  for (const target of all("[data-c]")) {
    for (const event of ["pointerenter", "focus"]) target.addEventListener(event, () => light(target, true));
    for (const event of ["pointerleave", "blur"]) target.addEventListener(event, () => light(target, false));
  }
  addEventListener("scroll", () => {
    // Focus may scroll the page: then the tooltip moves along instead of vanishing.
    const focused = document.activeElement;
    if (!tip.hidden && focused?.matches("[data-tip]")) show(focused);
    else hide();
  }, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
