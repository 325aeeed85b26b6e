"use strict";
// What moves on a page. Without this script its verdict and tables can be read as well.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Pictures are drawn once they have a width, so that folded and hidden ones cost nothing; and again when it changes.
  const drawn = new WeakMap();
  const draw = (place, width, dense = false) => {
    const figure = place.closest(".picture");
    const data = JSON.parse(figure.querySelector("script").textContent);
    place.replaceChildren(...pictures[figure.dataset.kind](data, width, dense));
  };
  const watching = new ResizeObserver(entries => entries.forEach(({ target }) => {
    const width = target.clientWidth;
    if (width && width !== drawn.get(target)) {
      drawn.set(target, width);
      draw(target, width);
    }
  }));
  all(".drawing").forEach(place => watching.observe(place));
  // A sheet of A4 is about 680 pixels wide between its margins; the verdict's picture fills half of it.
  const visible = () => all(".drawing").filter(place => place.clientWidth);
  addEventListener("beforeprint", () => visible().forEach(place => draw(place, place.closest(".verdict") ? 310 : 680, true)));
  addEventListener("afterprint", () => visible().forEach(place => draw(place, place.clientWidth)));

  // One site and method is shown at a time; the address may name the site: report.html#clientB.
  const site = document.getElementById("site"), method = document.getElementById("method");
  const show = () => all(".panel").forEach(panel => {
    panel.hidden = panel.dataset.site !== site.value || panel.dataset.method !== method.value;
  });
  const wanted = decodeURIComponent(location.hash.slice(1));
  if ([...site.options].some(option => option.value === wanted)) site.value = wanted;
  [site, method].forEach(choice => choice.addEventListener("change", show));
  show();

  // Tables: numbers before texts; the first click sorts downwards. The foot stays last.
  const text = (row, column) => row.cells[column].firstChild?.textContent.replace(/^[<>] /, "") ?? "";
  all(".sortable").forEach(table => {
    const body = table.tBodies[0], heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const sign = head.ariaSort === "descending" ? 1 : -1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const order = (one, two) => {
        const [a, b] = [text(one, column), text(two, column)], [x, y] = [parseFloat(a), parseFloat(b)];
        if (isNaN(x) !== isNaN(y)) return isNaN(x) - isNaN(y);
        return sign * (isNaN(x) ? a.localeCompare(b) : x - y);
      };
      [...body.rows].sort(order).forEach(row => body.append(row));
    }));
  });
  const cues = new ResizeObserver(entries => entries.forEach(({ target }) => {
    const cue = target.nextElementSibling;
    if (cue?.matches(".cue")) cue.hidden = target.scrollWidth <= target.clientWidth + 1;
  }));
  all(".wide").forEach(wide => cues.observe(wide));

  // Words of the glossary are explained where they stand, for the mouse and for the keyboard; Escape closes.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const explain = ({ target }) => {
    const word = target.closest?.(".term");
    tip.hidden = !word;
    if (!word) return;
    tip.textContent = document.getElementById(word.getAttribute("aria-describedby")).textContent;
    const { left, bottom, top } = word.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = bottom + tip.offsetHeight + 12 < innerHeight ? `${bottom + 6}px` : `${top - tip.offsetHeight - 6}px`;
  };
  ["mouseover", "focusin"].forEach(kind => document.addEventListener(kind, explain));
  document.addEventListener("focusout", () => { tip.hidden = true; });
  document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
})();
