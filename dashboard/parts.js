// Pieces that several views are made of.

import { h, replace, setAttribute, setText } from './dom.js';
import { bytes, cores, coresOf, count } from './format.js';
import { live } from './live.js';

// ---- words ----

// How much attention a state asks for. Never shown by colour alone: the word stands beside it.
const TONES = {
  running: 'ok',
  healthy: 'ok',
  reachable: 'ok',
  chosen: 'ok',
  rolling: 'busy',
  releasing: 'busy',
  canary: 'busy',
  waiting: 'busy',
  starting: 'busy',
  pulling: 'busy',
  creating: 'busy',
  pending: 'busy',
  unhealthy: 'bad',
  failed: 'bad',
  silent: 'bad',
  backoff: 'warn',
  draining: 'warn',
  cordoned: 'warn',
  drained: 'warn',
  lost: 'bad',
  removing: 'warn',
  stopping: 'warn',
  refused: 'warn',
  stopped: 'idle',
  exited: 'idle',
  possible: 'idle',
};
const MARKS = { ok: '●', busy: '◐', warn: '▲', bad: '■', idle: '○' };

export function chip() {
  const mark = h('span', { 'aria-hidden': 'true' });
  const word = h('span');
  const element = h('span', { class: 'chip' }, mark, word);
  element.update = (state) => {
    const tone = TONES[state] ?? 'idle';
    setAttribute(element, 'class', `chip ${tone}`);
    setText(mark, MARKS[tone]);
    setText(word, state);
  };
  return element;
}

// How a location or a node stands, in one word.
export function standing(place) {
  if (!place.reachable) return place.lost ? 'lost' : 'silent';
  if (!place.cordon) return 'reachable';
  if (!place.cordon.drains) return 'cordoned';
  return place.drained ? 'drained' : 'draining';
}

// What an instance is doing, in one word.
export function phaseOf(instance) {
  return instance.draining ? 'draining' : instance.observed.phase;
}

export function exitText(exit) {
  switch (exit.kind) {
    case 'exited':
      return `exited with code ${exit.code}`;
    case 'signalled':
      return `ended by signal ${exit.signal}`;
    case 'out_of_memory':
      return `out of memory${exit.limit ? `: its limit is ${bytes(exit.limit)}` : ''}`;
    case 'start_failed':
      return `could not start: ${exit.message}`;
    case 'unhealthy':
      return 'health check failed';
    default:
      return exit.kind.replaceAll('_', ' ');
  }
}

// ---- bars ----

// Parts of a whole beside each other; `parts` are pairs of a class and a number.
export function bar(...classes) {
  const pieces = classes.map((name) => h('span', { class: name }));
  const element = h('span', { class: 'meter', 'aria-hidden': 'true' }, pieces);
  element.update = (whole, ...parts) => {
    pieces.forEach((piece, idx) => {
      const width = whole > 0 ? Math.min(100, (100 * parts[idx]) / whole) : 0;
      piece.style.width = `${width.toFixed(2)}%`;
    });
  };
  return element;
}

// Something used of something there is, with both in words.
export function gauge(show, pair = (used, whole) => `${show(used)} of ${show(whole)}`) {
  const text = h('span', { class: 'gauge-text' });
  const level = bar('used');
  const element = h('span', { class: 'gauge' }, text, level);
  element.update = (used, whole) => {
    setText(text, whole === null ? show(used) : pair(used, whole));
    level.hidden = whole === null;
    level.update(whole ?? 0, used ?? 0);
    const share = whole > 0 ? used / whole : 0;
    level.firstElementChild.className = share > 0.9 ? 'used high' : 'used';
  };
  return element;
}

// Processor time, memory and disk that are promised, as cells of a table.
export function capacityCells() {
  const gauges = [gauge(cores, coresOf), gauge(bytes), gauge(bytes)];
  const names = ['CPU', 'Memory', 'Disk'];
  const cells = gauges.map((one, idx) => cell(names[idx], one));
  return {
    cells,
    update(promised, capacity) {
      gauges[0].update(promised.cpu, capacity.cpu);
      gauges[1].update(promised.memory, capacity.memory);
      gauges[2].update(promised.disk, capacity.disk);
    },
  };
}

// How far an app is: what is ready of the present release, and what is left of others.
export function progress() {
  const text = h('span', { class: 'gauge-text' });
  const level = bar('ready', 'old');
  const element = h('span', { class: 'gauge progress' }, text, level);
  element.update = (app) => {
    const whole = Math.max(app.count, app.ready + app.outdated);
    level.update(whole, app.ready, app.outdated);
    const others = app.outdated > 0 ? `, ${count(app.outdated)} of others` : '';
    setText(text, `${count(app.ready)} of ${count(app.count)} ready${others}`);
  };
  return element;
}

// ---- panels, lists, tables ----

export function panel(title, ...children) {
  const id = `panel-${title.toLowerCase().replace(/[^a-z]+/g, '-')}`;
  const heading = h('h2', { id }, title);
  const aside = h('div', { class: 'panel-aside' });
  const element = h(
    'section',
    { class: 'panel', 'aria-labelledby': id },
    h('div', { class: 'panel-head' }, heading, aside),
    children,
  );
  return { element, aside, heading };
}

// A table whose cells carry the name of their column, by which they are labelled on a phone.
export function table(label, columns) {
  const body = h('tbody', { role: 'rowgroup' });
  const heads = columns.map((name) => h('th', { scope: 'col', role: 'columnheader' }, name));
  const head = h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, heads));
  const element = h('table', { class: 'list', role: 'table', 'aria-label': label }, head, body);
  return { element: h('div', { class: 'table-frame' }, element), body, heads };
}

// A row with its heading. The roles say what a style that makes cards of rows hides from some readers.
export function row(heading, ...cells) {
  return h('tr', { role: 'row' }, h('th', { scope: 'row', role: 'rowheader' }, heading), cells);
}

export function cell(name, ...children) {
  return h('td', { role: 'cell', 'data-name': name }, h('div', {}, children));
}

// Names and values: `rows` are pairs, those without a value are left out.
export function facts() {
  const element = h('dl', { class: 'facts' });
  let shown = '';
  element.update = (rows) => {
    const present = rows.filter(([, value]) => value !== null && value !== undefined && value !== '');
    const key = JSON.stringify(present.map(([name, value]) => [name, String(value.textContent ?? value)]));
    if (key === shown) return;
    shown = key;
    replace(
      element,
      present.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))),
    );
  };
  return element;
}

// Says that there is nothing, or that it is not known yet.
export function emptyLine() {
  const element = h('p', { class: 'quiet empty' });
  element.update = (text) => {
    setText(element, text ?? '');
    element.hidden = !text;
  };
  return element;
}

export function notice(tone) {
  const element = h('p', { class: `notice ${tone}`, hidden: true });
  element.update = (text) => {
    setText(element, text ?? '');
    element.hidden = !text;
  };
  return element;
}

// A field that narrows a list down; `/` leads to it.
export function filterField(label, onInput) {
  const input = h('input', {
    type: 'search',
    class: 'filter',
    placeholder: label,
    'aria-label': label,
    autocomplete: 'off',
    spellcheck: 'false',
    on: { input: () => onInput(input.value.trim().toLowerCase()) },
  });
  return input;
}

// ---- where to ----

const encoded = encodeURIComponent;

export const links = {
  overview: () => `#/projects/${encoded(live.project)}`,
  apps: () => `#/projects/${encoded(live.project)}/apps`,
  app: (name) => `#/projects/${encoded(live.project)}/apps/${encoded(name)}`,
  instance: (id) => `#/projects/${encoded(live.project)}/instances/${encoded(id)}`,
  locations: () => '#/locations',
  location: (name) => `#/locations/${encoded(name)}`,
  events: () => '#/events',
};

// A heading that the router moves the focus to, with the way back up above it.
export function pageHead(title, trail = [], ...beside) {
  const heading = h('h1', { tabindex: '-1' }, title);
  const way = trail.flatMap(([name, href], idx) => [idx > 0 ? ' / ' : null, h('a', { href }, name)]);
  return h(
    'div',
    { class: 'page-head' },
    trail.length > 0 ? h('p', { class: 'trail' }, way, ' /') : null,
    h('div', { class: 'page-title' }, heading, beside),
  );
}
