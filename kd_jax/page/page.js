'use strict';
// Draws the figures of the runs that are shown; nothing is fetched.
(() => {
  const page = JSON.parse(document.getElementById('data').textContent);
  const MOST = page.most;
  const SHAPES = ['circle', 'square', 'triangle-up', 'diamond', 'cross', 'triangle-down',
    'triangle-right', 'triangle-left'];
  const PATHS = ['M7 1a6 6 0 1 0 .01 0z', 'M2 2h10v10H2z', 'M7 1l6 11H1z', 'M7 0l5 7-5 7-5-7z',
    'M5 1h4v4h4v4H9v4H5V9H1V5h4z', 'M7 13L1 2h12z', 'M2 1l11 6-11 6z', 'M12 1L1 7l11 6z'];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const boxes = [...document.querySelectorAll('input[data-run]')];
  const select = document.getElementById('one');
  const store = 'kd_jax ' + document.title;
  const views = new Map();
  let shown = page.shown.slice();

  const remembered = (() => {
    try { return JSON.parse(sessionStorage.getItem(store)) || {}; } catch { return {}; }
  })();
  if (remembered.shown) shown = remembered.shown.filter((name) => page.runs.includes(name));
  if (select && page.predicted.includes(remembered.one)) select.value = remembered.one;
  function remember() {
    try {
      sessionStorage.setItem(store, JSON.stringify({ shown, one: select && select.value }));
    } catch { /* a page from a file may have no storage */ }
  }

  const colour = (k) => css(`--c${k % MOST}`);

  function filled(value, known) {
    if (typeof value === 'string') return value in known ? known[value] : value;
    if (Array.isArray(value)) return value.map((item) => filled(item, known));
    if (value && typeof value === 'object') {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, filled(v, known)]));
    }
    return value;
  }

  function rowsOf(figure) {
    const names = Object.keys(figure.columns);
    const rows = [];
    for (let k = 0; k < figure.columns[names[0]].length; k++) {
      const run = page.runs[figure.columns.run[k]];
      const on = figure.of === 'one' ? run === select.value : shown.includes(run);
      if (!on && figure.of !== 'all') continue;
      const row = { shown: on };
      for (const name of names) row[name] = figure.columns[name][k];
      row.run = run;
      rows.push(row);
    }
    return rows.sort((a, b) => a.shown - b.shown);  // those that are shown on top
  }

  function theme() {
    const ink = css('--ink'), soft = css('--soft'), line = css('--line');
    const font = 'system-ui, sans-serif';
    return {
      background: 'transparent', font,
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line,
        tickColor: line, titleFontWeight: 'normal', labelFontSize: 11, titleFontSize: 12 },
      view: { stroke: 'transparent' }, text: { fill: ink }, legend: { labelColor: soft },
      line: { interpolate: 'linear' },
    };
  }

  async function draw(figure) {
    const place = document.getElementById(`chart-${figure.name}`);
    const rows = rowsOf(figure);
    const known = {
      $runs: shown, $colours: shown.map((_, k) => colour(k)),
      $shapes: shown.map((_, k) => SHAPES[k % MOST]),
      $ink: css('--ink'), $faint: css('--faint'), $paper: css('--paper'), $accent: css('--accent'),
    };
    if (views.has(figure.name)) views.get(figure.name).finalize();
    views.delete(figure.name);
    if (!rows.length) {
      place.className = 'chart note';
      place.textContent = 'Nothing of the runs that are shown.';
      return;
    }
    const spec = { ...filled(figure.chart, known), data: { values: rows },
      description: figure.title, autosize: { type: 'fit-x', contains: 'padding' } };
    const actions = { export: true, source: false, compiled: false, editor: false };
    const options = { renderer: 'svg', ast: true, actions, config: theme(),
      tooltip: { theme: dark.matches ? 'dark' : 'light' }, downloadFileName: figure.name };
    views.set(figure.name, await vegaEmbed(place, spec, options));
  }

  function legend() {
    const place = document.getElementById('shown');
    place.replaceChildren(...shown.map((name, k) => {
      const item = document.createElement('span');
      const key = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
      const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
      key.setAttribute('class', 'key');
      key.setAttribute('viewBox', '0 0 14 14');
      key.setAttribute('aria-hidden', 'true');
      path.setAttribute('d', PATHS[k % MOST]);
      path.setAttribute('fill', colour(k));
      key.append(path);
      item.append(key, name);
      return item;
    }));
    for (const box of boxes) {
      box.checked = shown.includes(box.dataset.run);
      box.disabled = !box.checked && shown.length >= MOST;
    }
    const told = document.getElementById('most');
    if (told) told.hidden = shown.length < MOST;
  }

  function pictures() {
    for (const part of document.querySelectorAll('[data-of]')) {
      part.hidden = part.dataset.of !== select.value;
    }
  }

  async function drawAll() {
    document.body.dataset.drawn = 'no';
    legend();
    if (select) pictures();
    for (const figure of page.figures) await draw(figure);
    document.body.dataset.drawn = 'yes';
  }

  for (const box of boxes) {
    box.addEventListener('change', () => {
      shown = page.runs.filter((name) => (name === box.dataset.run ? box.checked
        : shown.includes(name)));
      remember();
      queue();
    });
  }
  if (select) {
    select.addEventListener('change', () => { remember(); queue(); });
  }
  const filter = document.getElementById('filter');
  if (filter) {
    filter.addEventListener('input', () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of document.querySelectorAll('#runs tbody tr')) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
  document.querySelectorAll('#runs th button').forEach((button) => {
    button.addEventListener('click', () => {
      const head = button.parentElement, column = head.cellIndex;
      const down = head.getAttribute('aria-sort') === 'descending';
      for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
      const value = (row) => {
        const text = row.cells[column].textContent.trim();
        const number = parseFloat(text.replace(/,/g, ''));
        return Number.isNaN(number) ? text : number;
      };
      const body = document.querySelector('#runs tbody');
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? 1 : -1);
      };
      body.append(...[...body.rows].sort(order));
    });
  });

  let running = Promise.resolve();
  function queue() {
    running = running.then(drawAll);
  }
  dark.addEventListener('change', queue);
  queue();
})();
