// One location with its nodes, what it has no room for, and its instances of the project.

import { get, part } from '../api.js';
import { h, keyed, setText } from '../dom.js';
import { ago, bytes, count, plural } from '../format.js';
import { live } from '../live.js';
import { capacityCells, cell, chip, facts, links, notice, pageHead, panel, row, standing, table } from '../parts.js';
import { instanceList } from './instances.js';

const EVERY = 3000;

function nodeRow(first) {
  const state = chip();
  const seen = h('span', { class: 'quiet' });
  const version = h('span');
  const runtimes = h('span');
  const capacity = capacityCells();
  const element = row(
    first.node,
    cell('State', state, ' ', seen),
    capacity.cells,
    cell('Runtimes', runtimes),
    cell('Version', version),
  );
  element.update = (node) => {
    state.update(standing(node));
    setText(seen, node.reachable ? '' : `reported ${ago(node.reported_at)}`);
    capacity.update(node.promised, node.capacity);
    const usable = (node.runtimes ?? []).filter((offer) => !offer.unavailable);
    setText(runtimes, usable.map((offer) => offer.runtime).join(', '));
    setText(version, node.version);
  };
  return element;
}

function missingLine() {
  const line = h('li');
  line.update = ({ project, app, missing, decision }) => {
    const refused = decision.candidates.map(({ name, why }) => `${name}: ${why}`).join('; ');
    const because = refused ? ` (${refused})` : '';
    setText(line, `${project}/${app}: ${plural(missing, 'instance')} missing, ${decision.why}${because}`);
  };
  return line;
}

// What of the GPUs of each model is promised.
function gpus(nodes) {
  const models = new Map();
  for (const { model, memory, promised } of nodes.flatMap((node) => node.gpus ?? [])) {
    const so = models.get(model) ?? { n: 0, memory: 0, promised: 0 };
    models.set(model, { n: so.n + 1, memory: so.memory + memory, promised: so.promised + promised });
  }
  const told = [...models].map(
    ([model, { n, memory, promised }]) => `${n} ${model}, ${bytes(promised)} of ${bytes(memory)} promised`,
  );
  return told.join('; ');
}

export function locationView({ location: name }) {
  const abort = new AbortController();
  const state = chip();
  const problemLine = notice('bad');
  const about = facts();
  const nodes = table('Nodes', ['Node', 'State', 'CPU', 'Memory', 'Disk', 'Runtimes', 'Version']);
  const missing = h('ul', { class: 'lines' });
  const missingPanel = panel('Not placed', missing).element;
  missingPanel.classList.add('alert');
  missingPanel.hidden = true;
  const instances = instanceList(`location=${part(name)}`);

  function show(view) {
    body.hidden = false;
    state.update(standing(view));
    const { coordinates, shortfalls = [] } = view;
    const place = coordinates && `${coordinates.latitude}, ${coordinates.longitude}`;
    about.update([
      ['Instances', `${count(view.ready)} of ${count(view.instances)} ready, of all projects`],
      ['Nodes', `${count(view.n_reachable)} of ${count(view.n_nodes)} reachable`],
      ['GPUs', gpus(view.nodes ?? [])],
      ['Coordinates', place ?? 'not told (coordinates in its config)'],
    ]);
    keyed(nodes.body, view.nodes ?? [], (node) => node.node, nodeRow);
    missingPanel.hidden = shortfalls.length === 0;
    keyed(missing, shortfalls, (one) => `${one.project}/${one.app}`, missingLine);
  }

  async function refresh() {
    try {
      show(await get(`/locations/${part(name)}`, { signal: abort.signal }));
      problemLine.update(null);
    } catch (problem) {
      if (!abort.signal.aborted) problemLine.update(problem.message);
    }
  }
  const body = h(
    'div',
    { class: 'page-body', hidden: true },
    missingPanel,
    h('section', { class: 'panel', 'aria-label': 'About' }, about),
    panel('Nodes', nodes.element).element,
    panel(`Instances of ${live.project}`, instances.element).element,
  );
  const timer = setInterval(() => document.hidden || refresh(), EVERY);
  refresh();
  const head = pageHead(name, [['Locations', links.locations()]], state);
  return {
    title: name,
    element: h('div', { class: 'page' }, head, problemLine, body),
    up: links.locations(),
    update() {},
    close() {
      clearInterval(timer);
      abort.abort();
      instances.close();
    },
  };
}
