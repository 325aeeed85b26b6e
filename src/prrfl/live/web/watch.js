"use strict";
// Asks the server once a second where the work is, and shows it. Texts are set as text, so none can become markup.
(() => {
  const EVERY = 1000;
  const get = id => document.getElementById(id);
  const NOTES = {
    run: "Of the deployed network: on the test set after each local epoch, and before and after each communication, whose effect is a vertical step; on the validation set after it.",
    comparison: "Of the deployed networks. A line is the mean of a method's seeds that have come so far; a vertical step is the effect of a communication.",
  };
  let drawn = null, curves = null, width = 0;

  const element = (tag, ...children) => {
    const made = document.createElement(tag);
    made.append(...children);
    return made;
  };
  const setText = (id, text) => { if (get(id).textContent !== text) get(id).textContent = text; };
  const score = value => value === null ? "–" : value.toFixed(2);

  const time = seconds => {
    const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
  };

  const bar = (part, name) => {
    if (part === null) return "";
    const made = element("progress");
    made.max = 1;
    made.value = part;
    made.setAttribute("aria-label", `${name}: part that is done`);
    return made;
  };

  const row = one => {
    const head = element("th", one.name);
    head.scope = "row";
    return element("tr", head, element("td", one.state), element("td", bar(one.part, one.name)), element("td", score(one.test)), element("td", score(one.validation)));
  };

  /** Draw the curves, if there are any and there is room: vertical steps are communications. */
  const draw = () => {
    width = get("drawing").clientWidth;
    const panels = curves.panels.filter(panel => panel.lines.length);
    if (width && panels.length) get("drawing").replaceChildren(...pictures.curves({ ...curves, panels }, width));
  };

  const show = state => {
    const over = state.status === "finished";
    if (state.title) {
      setText("title", state.title);
      document.title = `${over ? "finished" : `${Math.floor(100 * state.part)} %`}: ${state.title}`;
    }
    setText("folder", state.folder);
    setText("says", state.says);
    get("says").dataset.status = state.status;
    if (state.status === "unreadable") return;
    const comparison = state.kind === "comparison";
    get("going").hidden = over;
    get("part").value = state.part;
    setText("percent", `${(100 * state.part).toFixed(1)} %`);
    setText("left", state.seconds_left === null ? "" : `about ${time(state.seconds_left)} left${state.kind === "site" ? " of its own training" : ""}`);

    get("next").hidden = !state.next.length;
    get("steps").replaceChildren(...state.next.flatMap(step => [element("dt", element("code", step.command)), element("dd", step.purpose)]));
    get("warned").hidden = !state.warnings.length;
    get("warnings").replaceChildren(...state.warnings.map(line => element("li", line)));
    get("going-on").hidden = !state.rows.length;
    setText("rows-title", comparison ? "Runs" : "Sites");
    setText("row-head", comparison ? "run" : "site");
    setText("rows-note", comparison ? "Test and validation: newest macro-F1 (%), mean of sites." : "Test and validation: newest macro-F1 (%) of the deployed network. Done: part of this round's training.");
    get("rows").replaceChildren(...state.rows.map(row));
    get("going-on").classList.toggle("still", state.rows.every(one => !one.state && one.part === null));
    get("logged").hidden = !state.log.length;
    setText("log-title", state.log_of ? `Log of ${state.log_of}` : "Log");
    const log = get("log"), atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 5;
    setText("log", state.log.join("\n"));
    if (atEnd) log.scrollTop = log.scrollHeight;

    if (state.curves) {
      curves = state.curves;
      drawn = state.drawn;
      get("curves").hidden = !curves.panels.some(panel => panel.lines.length);
      setText("curves-note", NOTES[comparison ? "comparison" : "run"]);
      draw();
    }
  };

  const ask = async () => {
    setTimeout(ask, document.hidden ? 10 * EVERY : EVERY);
    let state = null;
    try {
      state = await (await fetch(drawn === null ? "state" : `state?drawn=${drawn}`)).json();
    } catch { /* the server was stopped */ }
    get("lost").hidden = state !== null;
    if (state) show(state);
  };

  new ResizeObserver(() => { if (curves && get("drawing").clientWidth !== width) draw(); }).observe(get("drawing"));
  ask();
})();
